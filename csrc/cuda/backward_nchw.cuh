// Backward over features whose pixels are dense (NCHW), C <= 256, student and teacher of up to 32 bits each; the
// equation is in backward_pixels.cuh. A block does a chunk, tile after tile of pixels with all channels:
//
//   1. per pixel    u_s, u_t                             from registers; the next tile's loads are sent off behind it,
//                                                        the pixels' maps first, so that nothing waits for the rest
//   2. per pixel    the factors
//   3.              ∂L/∂s, written; parts of ∂L/∂Wk      from the same registers
//
//   student, teacher, grad  [N][C][P] with any strides of image and channel
//   maps, stats             [N][kMaps][P], [N][kStats][C]
//   chunk_sums              [N][chunks]   out: parts of ∂L/∂Wk of student and teacher, [2][C] and KeyNumbers
#pragma once

#include "backward_pixels.cuh"
#include "nchw.cuh"

namespace fgd::cuda::nchw {

template <class S, class T>
FGD_DEVICE void share_projections(const Tile<S, T>& tile, const ChannelFactors<float> (&channels)[kRows],
                                  FactorStep<float, kTilePixels<S, T>>& step) {
  float u[2][kPair<S, T>] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float s[kPair<S, T>], t[kPair<S, T>];
    unpack<S, kPair<S, T>>(tile.student[i], s, S{});
    unpack<T, kPair<S, T>>(tile.teacher[i], t, T{});
#pragma unroll
    for (int j = 0; j < kPair<S, T>; ++j) {
      u[0][j] += channels[i].context_s * s[j];
      u[1][j] += channels[i].context_t * t[j];
    }
  }
  const int lane = lane_index(), pixel = column() * kPair<S, T> + owned_sum<kPair<S, T>, kColumns>(lane);
#pragma unroll
  for (int net = 0; net < 2; ++net) {
    const float x = sum_over_lanes<kPair<S, T>, kColumns, 32>(u[net], lane);
    if (kPair<S, T> == 32 / kColumns || lane < kColumns * kPair<S, T>) step.part[net][warp_index()][pixel] = x;
  }
}

template <class S, class T>
struct Gradients {
  S* data;  // of the image, at this thread's column
  int64_t channel;
  int alignment;
  FGD_DEVICE Gradients(const Level& level, int image)
      : data(level.grad.data ? image_data<S>(level.grad, image) + column() * kPair<S, T> : nullptr),
        channel(level.grad.channel),
        alignment(level.grad.alignment) {}
  FGD_DEVICE void store(int c, int first, int end, const Packet<S, kPair<S, T>>& packet) const {
    S* to = data + c * channel + first;
    const bool whole = first + kTilePixels<S, T> <= end;
    const int count = end - first - column() * kPair<S, T>;
    if (alignment == 16 && whole)
      store_packet(to, packet);
    else if (sizeof(S) == 2 && alignment >= 4 && count % 2 == 0)
      scatter_words<kPair<S, T>>(to, packet, count);
    else if (sizeof(S) == 2 && whole)
      store_shifted<kPair<S, T>>(to, packet);
    else
      scatter_packet<kPair<S, T>>(to, packet, count);
  }
};

template <class S, class T>
FGD_DEVICE void write_gradient(const Tile<S, T>& tile, const ChannelFactors<float> (&channels)[kRows], float direct,
                               const FactorStep<float, kTilePixels<S, T>>& step, const Level& level,
                               const Gradients<S, T>& out, int first, int end, float (&key)[kRows][2]) {
  float factor[kFactors][kPair<S, T>];
#pragma unroll
  for (int k = 0; k < kFactors; ++k) read_columns(step.factor[k], factor[k]);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float s[kPair<S, T>], t[kPair<S, T>], grad[kPair<S, T>];
    unpack<S, kPair<S, T>>(tile.student[i], s, S{});
    unpack<T, kPair<S, T>>(tile.teacher[i], t, T{});
#pragma unroll
    for (int j = 0; j < kPair<S, T>; ++j) {
      grad[j] = gradient(s[j], s[j] - t[j], channels[i], direct, factor[kFactorFeature][j], factor[kFactorSign][j],
                         factor[kFactorContext][j], factor[kFactorKey][j]);
      key[i][0] += factor[kFactorKeyS][j] * s[j];
      key[i][1] += factor[kFactorKeyT][j] * t[j];
    }
    if (out.data && channel(i) < level.channels) out.store(channel(i), first, end, pack<S, kPair<S, T>>(grad, S{}));
  }
}

template <class S, class T>
FGD_DEVICE void backward(const PyramidParams& p) {
  constexpr int kPixels = kTilePixels<S, T>;
  __shared__ __align__(16) FactorStep<float, kPixels> step;
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Rows<S, T> rows(level, chunk.image);
  Tile<S, T> tile, next;
  rows.load(level, chunk.begin, chunk.end, tile);
  const Upstream<float> up(p, level);
  const float mean_s = context_mean<float>(p, level, chunk.image, 0);
  const float mean_t = context_mean<float>(p, level, chunk.image, 1);
  ChannelFactors<float> channels[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) channels[i] = channel_factors(p, level, chunk.image, up, channel(i));
  const Gradients<S, T> out(level, chunk.image);
  const float* maps = image_maps<float>(level, chunk.image);
  const int net = threadIdx.x / kPixels, pixel = threadIdx.x % kPixels;
  float key[kRows][2] = {};
  KeySum<float> key_sum;
  PixelMaps<float> pixel_maps;
  if (net < 2 && chunk.begin + pixel < chunk.end) pixel_maps.load(maps, level.pixels, net, chunk.begin + pixel);
  pixel_maps.settle();
  for (int first = chunk.begin; first < chunk.end; first += kPixels) {
    share_projections<S, T>(tile, channels, step);
    PixelMaps<float> next_maps;  // zeros behind the end
    if (net < 2 && first + kPixels + pixel < chunk.end)
      next_maps.load(maps, level.pixels, net, first + kPixels + pixel);
    if (first + kPixels < chunk.end) rows.load(level, first + kPixels, chunk.end, next);
    __syncthreads();
    finish_factors(step, up, pixel_maps, net ? mean_t : mean_s, first, key_sum);
    __syncthreads();
    write_gradient<S, T>(tile, channels, up.direct, step, level, out, first, chunk.end, key);
    tile = next;
    pixel_maps = next_maps;
  }
  float* parts = key_parts<float>(level, chunk);
  if (!parts) return;
  write_key_numbers<float, kPixels>(key_sum, level.channels, parts);
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float x = add_over_lanes<1, kColumns>(key[i][k]);
      if (column() == 0 && channel(i) < level.channels) parts[k * level.channels + channel(i)] = x;
    }
}

}  // namespace fgd::cuda::nchw

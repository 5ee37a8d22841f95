// Backward over features whose pixels are dense (NCHW) with 257 to 2048 channels, student and teacher of one type of up
// to 32 bits; the equation is in backward_pixels.cuh, the steps are those of backward_nchw.cuh by the way of
// nchw_wide.cuh.
//
//   student, teacher, grad  [N][C][P] with any strides of image and channel
//   maps, stats             [N][kMaps][P], [N][kStats][C]
//   chunk_sums              [N][chunks]   out: parts of ∂L/∂Wk of student and teacher, [2][C] and KeyNumbers
#pragma once

#include "backward_pixels.cuh"
#include "nchw_wide.cuh"

namespace fgd::cuda::nchw_wide {

// What every channel has, in shared memory. That has no room for a sixth number of 2048 channels: there the two threads
// of a row keep it in registers, half of its channels each.
template <class Z>
struct Channels {
  static constexpr bool kRoom = Z::kShare == 1;
  float4 first[Z::kMost];                                     // attention, shift, sign, key
  std::conditional_t<kRoom, float2, float> second[Z::kMost];  // context_s, context_t
  FGD_DEVICE void fill(const PyramidParams& p, const Level& level, int image, const Upstream<float>& up) {
    for (int c = threadIdx.x; c < Z::kMost; c += kThreads) {
      const ChannelFactors<float> f = channel_factors(p, level, image, up, c);
      first[c] = make_float4(f.attention, f.shift, f.sign, f.key);
      if constexpr (kRoom)
        second[c] = make_float2(f.context_s, f.context_t);
      else
        second[c] = f.context_s;
    }
    __syncthreads();
  }
  FGD_DEVICE ChannelFactors<float> operator[](int c) const {
    const float4 f = first[c];
    if constexpr (kRoom)
      return {f.x, f.y, f.z, second[c].x, second[c].y, f.w};
    else
      return {f.x, f.y, f.z, second[c], 0.f, f.w};
  }
};

// ∂L/∂ctx of the teacher, of channels of this thread and the other one of its row in turn.
template <class Z>
struct TeacherContexts {
  static constexpr int kOwn = Z::kChannels / 2;
  float own[kOwn];
  FGD_DEVICE TeacherContexts(const Maps<Z>& features, const float* grad) {
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int i = 2 * k + Z::column();
      own[k] = grad && features.there(i) ? grad[Z::channel(i)] : 0.f;
    }
  }
  FGD_DEVICE float at(int i) const { return __shfl_sync(kAllLanes, own[i / 2], i % 2, 2); }
};

template <class Z>
FGD_DEVICE void add_projections(const Tile<Z>& tile, int i, float2 context, float (&u)[2][Z::kV]) {
  using T = typename Z::T;
  float s[Z::kV], t[Z::kV];
  unpack<T, Z::kV>(tile.student[i], s, T{});
  unpack<T, Z::kV>(tile.teacher[i], t, T{});
#pragma unroll
  for (int j = 0; j < Z::kV; ++j) {
    u[0][j] = i == 0 ? context.x * s[j] : u[0][j] + context.x * s[j];
    u[1][j] = i == 0 ? context.y * t[j] : u[1][j] + context.y * t[j];
  }
}

// As in backward_nchw.cuh.
template <class Z, class T = typename Z::T>
FGD_DEVICE void store_row(T* to, int alignment, int first, int end, const Packet<T, Z::kV>& packet) {
  const bool whole = first + Z::kPixels <= end;
  const int count = end - first - Z::column() * Z::kV;
  if (alignment == 16 && whole)
    store_packet(to, packet);
  else if (sizeof(T) == 2 && alignment >= 4 && count % 2 == 0)
    scatter_words<Z::kV>(to, packet, count);
  else if (sizeof(T) == 2 && whole)
    store_shifted<Z::kV>(to, packet);
  else
    scatter_packet<Z::kV>(to, packet, count);
}

// A row's gradient, and its channel's part of ∂L/∂Wk. What is read anew is what there are no registers for.
template <class Z>
FGD_DEVICE Packet<typename Z::T, Z::kV> row_gradient(const Tile<Z>& tile, int i, const ChannelFactors<float>& channel,
                                                     float direct, const float (&factor)[kFactorContext][Z::kV],
                                                     const FactorStep<float, Z::kPixels>& step, Sums<Z, 2>& key) {
  using T = typename Z::T;
  float s[Z::kV], t[Z::kV], grad[Z::kV], context[Z::kV], own_key[Z::kV], key_s[Z::kV], key_t[Z::kV];
  unpack<T, Z::kV>(tile.student[i], s, T{});
  unpack<T, Z::kV>(tile.teacher[i], t, T{});
  float part[2] = {};
  float (&sum)[2] = *[&] {
    if constexpr (Z::kShare == 1)
      return &key;
    else
      return &part;
  }();
#pragma unroll
  for (int j = 0; j < Z::kV; ++j) {
    if (j % (Z::kShare == 1 ? Z::kV : 4) == 0)
#pragma unroll
      for (int begin = j; begin < j + (Z::kShare == 1 ? Z::kV : 4); begin += 4) {
        read_four_again<Z>(step.factor[kFactorContext], begin, context + begin);
        read_four_again<Z>(step.factor[kFactorKey], begin, own_key + begin);
        read_four_again<Z>(step.factor[kFactorKeyS], begin, key_s + begin);
        read_four_again<Z>(step.factor[kFactorKeyT], begin, key_t + begin);
      }
    grad[j] = gradient(s[j], s[j] - t[j], channel, direct, factor[kFactorFeature][j], factor[kFactorSign][j],
                       context[j], own_key[j]);
    sum[0] += key_s[j] * s[j];
    sum[1] += key_t[j] * t[j];
  }
  if constexpr (Z::kShare == 2) key[0] += own_sum<Z>(part[0], part[1]);
  return pack<T, Z::kV>(grad, T{});
}

template <class Z>
FGD_DEVICE void backward(const PyramidParams& p) {
  using T = typename Z::T;
  __shared__ __align__(16) FactorStep<float, Z::kPixels> step;
  __shared__ Channels<Z> channels;
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  Maps<Z> features(level, chunk);
  Tile<Z> tile;
  const Upstream<float> up(p, level);
  const float mean_s = context_mean<float, Z>(p, level, chunk.image, 0);
  const float mean_t = context_mean<float, Z>(p, level, chunk.image, 1);
  channels.fill(p, level, chunk.image, up);
  const TeacherContexts<Z> contexts_t(features, context_grad<float>(p, level, chunk.image, 1));
  const Place<T> grad = place_of<Z>(level.grad, chunk.image, 0);
  const float* maps = image_maps<float>(level, chunk.image);
  const int net = threadIdx.x / Z::kPixels, pixel = threadIdx.x % Z::kPixels;
  Sums<Z, 2> key[Z::kChannels] = {};
  KeySum<float> key_sum;
  bool loaded = false;
  PixelMaps<float> pixel_maps;
  auto load_maps = [&](int first, PixelMaps<float>& to) {
    if (net < 2 && first + pixel < chunk.end) to.load(maps, level.pixels, net, first + pixel);
  };
  load_maps(chunk.begin, pixel_maps);
  pixel_maps.settle();
  for (int first = chunk.begin; first < chunk.end; first += Z::kPixels) {
    if (!loaded) features.load(first, chunk.end, tile);
    float u[2][Z::kV];
    features.for_rows([&](int i) {
      const auto& context = channels.second[Z::channel(i)];
      if constexpr (Channels<Z>::kRoom)
        add_projections<Z>(tile, i, context, u);
      else
        add_projections<Z>(tile, i, make_float2(context, contexts_t.at(i)), u);
    });
    const int next = first + Z::kPixels;
    PixelMaps<float> next_maps;  // zeros behind the end
    load_maps(next, next_maps);  // before the tile, so that what waits for them does not wait for it
    share_sums<Z>(u[0], step.part[0]);
    share_sums<Z>(u[1], step.part[1]);
    __syncthreads();
    finish_factors(step, up, pixel_maps, net ? mean_t : mean_s, first, key_sum);
    __syncthreads();
    float factor[kFactorContext][Z::kV];
#pragma unroll
    for (int k = 0; k < kFactorContext; ++k) read_columns<Z>(step.factor[k], factor[k]);
    loaded = features.whole(next, chunk.end);
    features.next_tile();
    features.for_rows([&](int i) {
      const auto packet = row_gradient<Z>(tile, i, channels[Z::channel(i)], up.direct, factor, step, key[i]);
      if (loaded) features.load_row(i, tile);
      if (level.grad.data && features.there(i))
        store_row<Z>(grad.at + (first + i * grad.next), level.grad.alignment, first, chunk.end, packet);
    });
    if (loaded) features.rewind();
    pixel_maps = next_maps;
  }
  float* parts = key_parts<float>(level, chunk);
  if (!parts) return;
  write_key_numbers<float, Z::kPixels>(key_sum, level.channels, parts);
  write_sums<Z, 2>(key, level.channels, parts);
}

}  // namespace fgd::cuda::nchw_wide

#define FGD_NCHW_WIDE_KERNEL(variant, T, columns, channels)                                  \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1)                       \
      fgd_backward_nchw_wide_##variant(const __grid_constant__ fgd::cuda::PyramidParams p) { \
    fgd::cuda::nchw_wide::backward<fgd::cuda::nchw_wide::Shape<T, columns, channels>>(p);    \
  }

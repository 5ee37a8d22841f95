// Backward over features whose channels are dense (channels_last), C <= 256, student and teacher of up to 32 bits each;
// the equation is in backward_pixels.cuh. Each warp does whole pixels and waits for no other one; the block's parts of
// ∂L/∂Wk are added once, at the end of the chunk.
//
//   student, teacher, grad  [N][P][C] with any strides of image and pixel
//   maps, stats             [N][kMaps][P], [N][kStats][C]
//   chunk_sums              [N][chunks]   out: parts of ∂L/∂Wk of student and teacher, [2][C] and KeyNumbers
#pragma once

#include "backward_pixels.cuh"
#include "nhwc.cuh"

namespace fgd::cuda::nhwc {

// After the exchange over lanes, a lane holds u of one net and one pixel.
template <class S, class T>
struct LaneRole {
  static constexpr int kSums = 2 * kPixels<S, T>;
  int net, pixel;
  bool first_copy;
  FGD_DEVICE LaneRole() {
    const int sum = owned_sum<kSums, 1>(lane_index());
    net = sum / kPixels<S, T>;
    pixel = sum % kPixels<S, T>;
    first_copy = lane_index() < kSums;
  }
};

template <class S, class T>
FGD_DEVICE float projection(const Step<S, T>& step, const ChannelFactors<float> (&channels)[kChannels]) {
  float u[2 * kPixels<S, T>] = {};
#pragma unroll
  for (int j = 0; j < kPixels<S, T>; ++j) {
    float s[kChannels], t[kChannels];
    unpack_channels<S, kPair<S, T>>(step.student[j], s);
    unpack_channels<T, kPair<S, T>>(step.teacher[j], t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      u[j] += channels[i].context_s * s[i];
      u[kPixels<S, T> + j] += channels[i].context_t * t[i];
    }
  }
  return sum_over_lanes<2 * kPixels<S, T>, 1, 32>(u, lane_index());
}

template <class S, class T>
struct WarpFactors {  // in shared memory
  float value[kPixels<S, T>][8];
};

template <class S, class T>
FGD_DEVICE void share_factors(const LaneRole<S, T>& role, const Upstream<float>& up, const PixelMaps<float>& maps,
                              float u, float mean, int first, KeySum<float>& sum, WarpFactors<S, T>& factors) {
  if (!role.first_copy) return;
  float* out = factors.value[role.pixel];
  const float f = maps.context * (u - mean);
  out[role.net ? kFactorKeyT : kFactorKeyS] = sum.add(maps.context, f, first + role.pixel);
  if (role.net) return;
  out[kFactorKey] = student_factor(maps.context, f);
  out[kFactorFeature] = feature_factor(up, maps.focal);
  out[kFactorSign] = up.attention * maps.attention;
  out[kFactorContext] = maps.context;
}

template <class S, class T>
FGD_DEVICE void store_channels(const Level& level, int image, int pixel, const float (&grad)[kChannels]) {
  S* row = image_data<S>(level.grad, image) + pixel * level.grad.pixel;
#pragma unroll
  for (int v = 0; v < kVectors<S, T>; ++v) {
    const int c = first_channel<S, T>(v);
    float part[kPair<S, T>];
#pragma unroll
    for (int e = 0; e < kPair<S, T>; ++e) part[e] = grad[v * kPair<S, T> + e];
    const auto packet = pack<S, kPair<S, T>>(part, S{});
    if (!(level.grad.alignment & 16))
      scatter_packet<kPair<S, T>>(row + c, packet, level.channels - c);
    else if (c < level.channels)
      store_packet(row + c, packet);
  }
}

template <class S, class T>
FGD_DEVICE void write_gradient(const Step<S, T>& step, const ChannelFactors<float> (&channels)[kChannels], float direct,
                               const WarpFactors<S, T>& factors, const Level& level, int image, int first, int end,
                               float (&key)[2][kChannels]) {
#pragma unroll
  for (int j = 0; j < kPixels<S, T>; ++j) {
    if (first + j >= end) continue;
    const float* f = factors.value[j];
    float s[kChannels], t[kChannels], grad[kChannels];
    unpack_channels<S, kPair<S, T>>(step.student[j], s);
    unpack_channels<T, kPair<S, T>>(step.teacher[j], t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      grad[i] = gradient(s[i], s[i] - t[i], channels[i], direct, f[kFactorFeature], f[kFactorSign], f[kFactorContext],
                         f[kFactorKey]);
      key[0][i] += f[kFactorKeyS] * s[i];
      key[1][i] += f[kFactorKeyT] * t[i];
    }
    if (level.grad.data) store_channels<S, T>(level, image, first + j, grad);
  }
}

// Warp after warp adds its sums.
template <class S, class T>
FGD_DEVICE void write_key_parts(const float (&key)[2][kChannels], int channels, float (&sum)[2][kFastChannels],
                                float* out) {
  __syncthreads();  // `sum` served another purpose, and warps come here one by one
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp_index())
      for_channels<S, T>([&](int i, int c) {
#pragma unroll
        for (int k = 0; k < 2; ++k) sum[k][c] = w == 0 ? key[k][i] : sum[k][c] + key[k][i];
      });
    __syncthreads();
  }
  for (int i = threadIdx.x; i < 2 * channels; i += kThreads) out[i] = sum[i / channels][i % channels];
}

// Σ f and the peak, over the lanes of a net, then over the warps.
template <class S, class T>
FGD_DEVICE void write_key_numbers(const LaneRole<S, T>& role, const KeySum<float>& sum, int channels, float* parts) {
  __shared__ KeyNumbers<float> of_warp[kWarps];
#pragma unroll
  for (int net = 0; net < 2; ++net) {
    const bool mine = role.first_copy && role.net == net;
    const float total = add_over_lanes<1, 32>(mine ? sum.total : 0.f);
    const int peak = max_over_lanes<1, 32>(mine ? sum.peak : -1);
    if (lane_index() == 0) of_warp[warp_index()].total[net] = total, of_warp[warp_index()].peak[net] = peak;
  }
  __syncthreads();
  const int net = threadIdx.x;
  if (net >= 2) return;
  KeySum<float> all;
  for (int w = 0; w < kWarps; ++w) all.total += of_warp[w].total[net], all.peak = max(all.peak, of_warp[w].peak[net]);
  auto* numbers = reinterpret_cast<KeyNumbers<float>*>(parts + 2 * channels);
  numbers->total[net] = all.total;
  numbers->peak[net] = all.peak;
}

template <class S, class T>
FGD_DEVICE void backward(const PyramidParams& p) {
  __shared__ __align__(16) WarpFactors<S, T> factors[kWarps];
  __shared__ float key_sums[2][kFastChannels];
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Image<S, T> image(level, chunk.image);
  Step<S, T> step, next;
  image.load(level, pixel_of<S, T>(chunk.begin, 0), chunk.end, step);
  const Upstream<float> up(p, level);
  const float mean_s = context_mean<float>(p, level, chunk.image, 0);
  const float mean_t = context_mean<float>(p, level, chunk.image, 1);
  ChannelFactors<float> channels[kChannels];
  const ChannelFactors<float> own = channel_factors(p, level, chunk.image, up, static_cast<int>(threadIdx.x));
  load_factors(channels, [&](auto field, float (&values)[kChannels]) {
    spread_channels<S, T>(key_sums[0], [&](int) { return own.*field; }, values);
  });
  const LaneRole<S, T> role;
  const float* maps = image_maps<float>(level, chunk.image);
  float key[2][kChannels] = {};
  KeySum<float> key_sum;
  const int last = (chunk.end - chunk.begin + kTile - 1) / kTile * kSteps<S, T>;
  PixelMaps<float> pixel_maps;
  auto load_maps = [&](int i, PixelMaps<float>& out) {
    const int mine = pixel_of<S, T>(chunk.begin, i) + role.pixel;
    if (mine < chunk.end) out.load(maps, level.pixels, role.net, mine);
  };
  load_maps(0, pixel_maps);
  pixel_maps.settle();
  for (int i = 0; i < last; ++i) {
    const int first = pixel_of<S, T>(chunk.begin, i);
    const float u = projection<S, T>(step, channels);
    PixelMaps<float> next_maps;   // zeros behind the end
    load_maps(i + 1, next_maps);  // before the step, so that what waits for them does not wait for it
    if (i + 1 < last) image.load(level, pixel_of<S, T>(chunk.begin, i + 1), chunk.end, next);
    share_factors<S, T>(role, up, pixel_maps, u, role.net ? mean_t : mean_s, first, key_sum, factors[warp_index()]);
    __syncwarp();
    write_gradient<S, T>(step, channels, up.direct, factors[warp_index()], level, chunk.image, first, chunk.end, key);
    __syncwarp();
    step = next;
    pixel_maps = next_maps;
  }
  float* parts = key_parts<float>(level, chunk);
  if (!parts) return;
  write_key_parts<S, T>(key, level.channels, key_sums, parts);
  write_key_numbers<S, T>(role, key_sum, level.channels, parts);
}

}  // namespace fgd::cuda::nhwc

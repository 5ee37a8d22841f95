// Backward over features whose channels are dense (channels_last) with 257 to 2048 channels, student and teacher of one
// type of up to 32 bits; the equation is in backward_pixels.cuh, the steps are those of backward_nchw.cuh by the way of
// nhwc_wide.cuh.
//
//   student, teacher, grad  [N][P][C] with any strides of image and pixel
//   maps, stats             [N][kMaps][P], [N][kStats][C]
//   chunk_sums              [N][chunks]   out: parts of ∂L/∂Wk of student and teacher, [2][C] and KeyNumbers
#include "backward_pixels.cuh"
#include "nhwc_wide.cuh"

namespace fgd::cuda::nhwc_wide {

template <class T>
struct TileStep {  // in shared memory
  float part[2][kGroups][kPixels<T, T>];
  float factor[kFactors][kMostPixels];
};

template <class T>
FGD_DEVICE void share_projections(const Step<T>& step, const ChannelFactors<float> (&channels)[kChannels],
                                  TileStep<T>& shared) {
  constexpr int kN = kPixels<T, T>;
  float u[2 * kN] = {};
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    float s[kChannels], t[kChannels];
    unpack_channels<T, kPacket<T>>(step.student[j], s);
    unpack_channels<T, kPacket<T>>(step.teacher[j], t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      u[j] += channels[i].context_s * s[i];
      u[kN + j] += channels[i].context_t * t[i];
    }
  }
  share_sums<T, 2>(u, shared.part);
}

template <class T>
FGD_DEVICE void store_channels(const Level& level, const Place<T>& place, int image, int pixel,
                               const float (&grad)[kChannels]) {
  constexpr int kV = kPacket<T>;
  T* row = image_data<T>(level.grad, image) + pixel * level.grad.pixel;
#pragma unroll
  for (int v = 0; v < kVectors<T, T>; ++v) {
    const int c = place.first_channel(v);
    float part[kV];
#pragma unroll
    for (int e = 0; e < kV; ++e) part[e] = grad[v * kV + e];
    const auto packet = pack<T, kV>(part, T{});
    if (!(level.grad.alignment & 16))
      scatter_packet<kV>(row + c, packet, level.channels - c);
    else if (c < level.channels)
      store_packet(row + c, packet);
  }
}

template <class T>
FGD_DEVICE void write_gradient(const Step<T>& step, const ChannelFactors<float> (&channels)[kChannels], float direct,
                               const TileStep<T>& shared, const Level& level, const Place<T>& place, int image,
                               int first, int end, float (&key)[2][kChannels]) {
#pragma unroll
  for (int j = 0; j < kPixels<T, T>; ++j) {
    const int pixel = place.slot * kPixels<T, T> + j;
    if (first + pixel >= end) continue;
    auto factor = [&](Factor k) { return shared.factor[k][pixel]; };
    float s[kChannels], t[kChannels], grad[kChannels];
    unpack_channels<T, kPacket<T>>(step.student[j], s);
    unpack_channels<T, kPacket<T>>(step.teacher[j], t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      grad[i] = gradient(s[i], s[i] - t[i], channels[i], direct, factor(kFactorFeature), factor(kFactorSign),
                         factor(kFactorContext), factor(kFactorKey));
      key[0][i] += factor(kFactorKeyS) * s[i];
      key[1][i] += factor(kFactorKeyT) * t[i];
    }
    if (level.grad.data) store_channels(level, place, image, first + pixel, grad);
  }
}

template <class T>
FGD_DEVICE void backward(const PyramidParams& p) {
  __shared__ TileStep<T> shared;
  __shared__ float staged[kMostChannels];
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Place<T> place(level.channels);
  Image<T> image(level, chunk, place);
  const bool busy = warp_index() * (32 / kGroup) < place.units * place.slots;
  Step<T> step, next;
  image.load(level, place, chunk.begin, chunk.end, step);
  const Upstream<float> up(p, level);
  const float mean_s = context_mean<float>(p, level, chunk.image, 0);
  const float mean_t = context_mean<float>(p, level, chunk.image, 1);
  ChannelFactors<float> channels[kChannels];
  load_factors(channels, [&](auto field, float (&values)[kChannels]) {
    spread_channels(place, staged, [&](int c) { return channel_factors(p, level, chunk.image, up, c).*field; }, values);
  });
  const float* maps = image_maps<float>(level, chunk.image);
  const int net = warp_index(), pixel = lane_index(), pixels = place.pixels();
  float key[2][kChannels] = {};
  KeySum<float> key_sum;
  PixelMaps<float> pixel_maps;
  auto load_maps = [&](int first, PixelMaps<float>& out) {
    if (net < 2 && pixel < pixels && first + pixel < chunk.end) out.load(maps, level.pixels, net, first + pixel);
  };
  load_maps(chunk.begin, pixel_maps);
  pixel_maps.settle();
  for (int first = chunk.begin; first < chunk.end; first += pixels) {
    PixelMaps<float> next_maps;            // zeros behind the end
    load_maps(first + pixels, next_maps);  // before the step, so that what waits for them does not wait for it
    if (busy) {
      share_projections(step, channels, shared);
      if (first + pixels < chunk.end) image.load(level, place, first + pixels, chunk.end, next);
    }
    __syncthreads();
    if (net < 2)
      finish_factor(shared.factor, up, pixel_maps, net, pixel, sum_of_groups(place, shared.part[net], pixel),
                    net ? mean_t : mean_s, first + pixel, key_sum);
    __syncthreads();
    if (busy && place.slot < place.slots)
      write_gradient(step, channels, up.direct, shared, level, place, chunk.image, first, chunk.end, key);
    step = next;
    pixel_maps = next_maps;
  }
  float* parts = key_parts<float>(level, chunk);
  if (!parts) return;
  write_sums<T, 2>(place, [&](int i, int k) { return key[k][i]; }, level.channels, staged, parts);
  write_key_numbers<float, kMostPixels>(key_sum, level.channels, parts);
}

}  // namespace fgd::cuda::nhwc_wide

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, T)                                                                                            \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::nhwc_wide::backward<T>(p);                                                                              \
  }
FGD_KERNEL(fgd_backward_nhwc_wide_f32, float)
FGD_KERNEL(fgd_backward_nhwc_wide_f16, __half)
FGD_KERNEL(fgd_backward_nhwc_wide_bf16, __nv_bfloat16)

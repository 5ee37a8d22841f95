// Loads and stores for the generic kernels: any pair of types, any layout, any number of channels; one element at a
// time.
#pragma once

#include "device.cuh"

namespace fgd::cuda::generic {

constexpr int kTilePixels = 32;

// One image's features of a type known at run time: element (c, p). Double features come with A = double only.
template <class A>
struct Plane {
  const char* data;
  int64_t channel, pixel;
  int type;
  FGD_DEVICE Plane(const Features& f, int image, int type) : channel(f.channel), pixel(f.pixel), type(type) {
    const int size = type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2;
    data = static_cast<const char*>(f.data) + image * f.image * size;
  }
  FGD_DEVICE A operator()(int c, int p) const {
    const int64_t at = c * channel + p * pixel;
    if constexpr (sizeof(A) == 8) {
      return reinterpret_cast<const double*>(data)[at];
    } else {
      if (type == kFloat32) return reinterpret_cast<const float*>(data)[at];
      if (type == kFloat16) return __half2float(reinterpret_cast<const __half*>(data)[at]);
      return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[at]);
    }
  }
  FGD_DEVICE void store(int c, int p, A value) const {
    const int64_t at = c * channel + p * pixel;
    char* to = const_cast<char*>(data);
    if constexpr (sizeof(A) == 8) {
      reinterpret_cast<double*>(to)[at] = value;
    } else {
      if (type == kFloat32)
        reinterpret_cast<float*>(to)[at] = value;
      else if (type == kFloat16)
        reinterpret_cast<__half*>(to)[at] = __float2half_rn(value);
      else
        reinterpret_cast<__nv_bfloat16*>(to)[at] = __float2bfloat16_rn(value);
    }
  }
  // Neighbouring lanes should read neighbouring elements.
  FGD_DEVICE bool channels_dense() const { return channel < pixel; }
};

// Number c of an array that may not be there.
template <class A>
FGD_DEVICE A element(const void* array, int64_t index) {
  return array ? static_cast<const A*>(array)[index] : A{0};
}

// Sums over the channels of K numbers a pixel, for a tile: f(c, p, add) adds to add[K]. Where pixels are dense, lanes
// are pixels and each warp takes every eighth channel; where channels are dense, lanes are channels and each warp takes
// every eighth pixel. part: [K][kWarps][kTilePixels].
template <int K, class A, class F>
FGD_DEVICE void sum_pixels(bool channels_dense, int channels, int pixels, A (*part)[kWarps][kTilePixels], const F& f) {
  const int lane = lane_index(), warp = warp_index();
  if (!channels_dense) {
    A sum[K] = {};
    if (lane < pixels)
      for (int c = warp; c < channels; c += kWarps) f(c, lane, sum);
#pragma unroll
    for (int k = 0; k < K; ++k) part[k][warp][lane] = sum[k];
    return;
  }
  for (int pixel = warp; pixel < kTilePixels; pixel += kWarps) {
    A sum[K] = {};
    if (pixel < pixels)
      for (int c = lane; c < channels; c += 32) f(c, pixel, sum);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const A total = add_over_lanes<1, 32>(sum[k]);
      if (lane < kWarps) part[k][lane][pixel] = lane == 0 ? total : A{0};
    }
  }
}

}  // namespace fgd::cuda::generic

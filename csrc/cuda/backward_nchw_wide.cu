// Backward over features whose pixels are dense (NCHW) with 257 to 1024 channels, student and teacher of one type of up
// to 32 bits; the equation is in backward_pixels.cuh, the steps are those of backward_nchw.cuh by the way of
// nchw_wide.cuh.
//
//   student, teacher, grad  [N][C][P] with any strides of image and channel
//   maps, stats             [N][kMaps][P], [N][kStats][C]
//   chunk_sums              [N][chunks]   out: parts of ∂L/∂Wk of student and teacher, [2][C] and KeyNumbers
#include "backward_pixels.cuh"
#include "nchw_wide.cuh"

namespace fgd::cuda::nchw_wide {

// What every channel has, in shared memory.
template <class Z>
struct Channels {
  float4 first[Z::kMost];   // attention, shift, sign, key
  float2 second[Z::kMost];  // context_s, context_t
  FGD_DEVICE void fill(const PyramidParams& p, const Level& level, int image, const Upstream<float>& up) {
    for (int c = threadIdx.x; c < Z::kMost; c += kThreads) {
      const ChannelFactors<float> f = channel_factors(p, level, image, up, c);
      first[c] = make_float4(f.attention, f.shift, f.sign, f.key);
      second[c] = make_float2(f.context_s, f.context_t);
    }
    __syncthreads();
  }
  FGD_DEVICE ChannelFactors<float> operator[](int c) const {
    const float4 a = first[c];
    const float2 b = second[c];
    return {a.x, a.y, a.z, b.x, b.y, a.w};
  }
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

// A row's gradient, and its channel's part of ∂L/∂Wk.
template <class Z>
FGD_DEVICE Packet<typename Z::T, Z::kV> row_gradient(const Tile<Z>& tile, int i, const ChannelFactors<float>& channel,
                                                     float direct, const float (&factor)[kFactorContext][Z::kV],
                                                     const FactorStep<float, Z::kPixels>& step, float (&key)[2]) {
  using T = typename Z::T;
  float s[Z::kV], t[Z::kV], grad[Z::kV], context[Z::kV], own_key[Z::kV], key_s[Z::kV], key_t[Z::kV];
  read_columns_again<Z>(step.factor[kFactorContext], context);
  read_columns_again<Z>(step.factor[kFactorKey], own_key);
  read_columns_again<Z>(step.factor[kFactorKeyS], key_s);
  read_columns_again<Z>(step.factor[kFactorKeyT], key_t);
  unpack<T, Z::kV>(tile.student[i], s, T{});
  unpack<T, Z::kV>(tile.teacher[i], t, T{});
#pragma unroll
  for (int j = 0; j < Z::kV; ++j) {
    grad[j] = gradient(s[j], s[j] - t[j], channel, direct, factor[kFactorFeature][j], factor[kFactorSign][j],
                       context[j], own_key[j]);
    key[0] += key_s[j] * s[j];
    key[1] += key_t[j] * t[j];
  }
  return pack<T, Z::kV>(grad, T{});
}

template <class Z>
FGD_DEVICE void backward(const PyramidParams& p) {
  using T = typename Z::T;
  __shared__ __align__(16) FactorStep<float, Z::kPixels> step;
  __shared__ Channels<Z> channels;
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Maps<Z> features(level, chunk.image);
  Tile<Z> tile;
  const Upstream<float> up(p, level);
  const float mean_s = context_mean<float>(p, level, chunk.image, 0);
  const float mean_t = context_mean<float>(p, level, chunk.image, 1);
  channels.fill(p, level, chunk.image, up);
  const Place<T> grad = place_of<Z>(level.grad, chunk.image);
  const float* maps = image_maps<float>(level, chunk.image);
  const int net = threadIdx.x / Z::kPixels, pixel = threadIdx.x % Z::kPixels;
  float key[kChannels][2] = {};
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
    features.for_rows([&](int i) { add_projections<Z>(tile, i, channels.second[Z::channel(i)], u); });
    const int next = first + Z::kPixels;
    PixelMaps<float> next_maps;  // zeros behind the end
    load_maps(next, next_maps);  // before the tile, so that what waits for them does not wait for it
    share_sums<Z>(u, step.part);
    __syncthreads();
    finish_factors(step, up, pixel_maps, net ? mean_t : mean_s, first, key_sum);
    __syncthreads();
    float factor[kFactorContext][Z::kV];
#pragma unroll
    for (int k = 0; k < kFactorContext; ++k) read_columns<Z>(step.factor[k], factor[k]);
    loaded = features.whole(next, chunk.end);
    const T *s = features.student.at + next, *t = features.teacher.at + next;
    features.for_rows([&](int i) {
      const auto packet = row_gradient<Z>(tile, i, channels[Z::channel(i)], up.direct, factor, step, key[i]);
      if (loaded) features.load_row(i, s, t, tile);
      if (level.grad.data && features.there(i))
        store_row<Z>(grad.at + (first + i * grad.next), level.grad.alignment, first, chunk.end, packet);
    });
    pixel_maps = next_maps;
  }
  float* parts = key_parts<float>(level, chunk);
  if (!parts) return;
  write_key_numbers<float, Z::kPixels>(key_sum, level.channels, parts);
  write_sums<Z>(key, level.channels, parts);
}

}  // namespace fgd::cuda::nchw_wide

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, T, columns)                                                                                   \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::nchw_wide::backward<fgd::cuda::nchw_wide::Shape<T, columns>>(p);                                        \
  }
FGD_KERNEL(fgd_backward_nchw_wide_512_f32, float, 4)
FGD_KERNEL(fgd_backward_nchw_wide_512_f16, __half, 4)
FGD_KERNEL(fgd_backward_nchw_wide_512_bf16, __nv_bfloat16, 4)
FGD_KERNEL(fgd_backward_nchw_wide_1024_f32, float, 2)
FGD_KERNEL(fgd_backward_nchw_wide_1024_f16, __half, 2)
FGD_KERNEL(fgd_backward_nchw_wide_1024_bf16, __nv_bfloat16, 2)

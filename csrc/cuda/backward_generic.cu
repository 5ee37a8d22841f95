// Backward over features of any types, layout and number of channels; the equation is in backward_pixels.cuh, the way
// through memory that of forward_generic.cu.
//
//   student, teacher, grad  [N][C][P] with any strides; types known at run time, grad's is the student's
//   maps, stats             [N][kMaps][P], [N][kStats][C]
//   chunk_sums              [N][chunks]   out: parts of ∂L/∂Wk of student and teacher, [2][C] and KeyNumbers
#include "backward_pixels.cuh"
#include "generic.cuh"

namespace fgd::cuda::generic {

template <class A>
struct BackwardTile {
  const FactorStep<A, kTilePixels>& step;
  Plane<A> student, teacher, grad;
  bool write;
  int channels, first, pixels;
  A direct;
  A* parts;  // [2][C], or null

  FGD_DEVICE void write_pair(int c, int pixel, const ChannelFactors<A>& factors, A (&key)[2]) const {
    const A s = student(c, first + pixel), t = teacher(c, first + pixel);
    key[0] += step.factor[kFactorKeyS][pixel] * s;
    key[1] += step.factor[kFactorKeyT][pixel] * t;
    if (write)
      grad.store(
          c, first + pixel,
          gradient(s, s - t, factors, direct, step.factor[kFactorFeature][pixel], step.factor[kFactorSign][pixel],
                   step.factor[kFactorContext][pixel], step.factor[kFactorKey][pixel]));
  }
  FGD_DEVICE void update(int net, int c, A value, bool begin) const {
    if (!parts) return;
    A& sum = parts[int64_t{net} * channels + c];
    sum = begin ? value : sum + value;
  }
  // factors(c) gives a channel's. Lanes are pixels, warps channels.
  template <class F>
  FGD_DEVICE void write_rows(const F& factors, bool begin) const {
    const int lane = lane_index();
    for (int c = warp_index(); c < channels; c += kWarps) {
      A key[2] = {};
      if (lane < pixels) write_pair(c, lane, factors(c), key);
      const A total = sum_over_lanes<2, 1, 32>(key, lane);
      if (lane < 2) update(lane, c, total, begin);
    }
  }
  // Threads are channels.
  template <class F>
  FGD_DEVICE void write_columns(const F& factors, bool begin) const {
    for (int c = threadIdx.x; c < channels; c += kThreads) {
      const ChannelFactors<A> f = factors(c);
      A key[2] = {};
      for (int pixel = 0; pixel < pixels; ++pixel) write_pair(c, pixel, f, key);
      update(0, c, key[0], begin);
      update(1, c, key[1], begin);
    }
  }
};

template <class A>
FGD_DEVICE void backward(const PyramidParams& p) {
  __shared__ FactorStep<A, kTilePixels> step;
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Plane<A> student(level.student, chunk.image, p.student_type),
      teacher(level.teacher, chunk.image, p.teacher_type);
  const Plane<A> grad(level.grad, chunk.image, p.student_type);
  const Upstream<A> up(p, level);
  const A mean_s = context_mean<A>(p, level, chunk.image, 0), mean_t = context_mean<A>(p, level, chunk.image, 1);
  const A *grad_s = context_grad<A>(p, level, chunk.image, 0), *grad_t = context_grad<A>(p, level, chunk.image, 1);
  const A* maps = image_maps<A>(level, chunk.image);
  const int net = threadIdx.x / kTilePixels, pixel = threadIdx.x % kTilePixels;
  auto factors = [&](int c) { return channel_factors(p, level, chunk.image, up, c); };
  A* parts = key_parts<A>(level, chunk);
  KeySum<A> key_sum;
  for (int first = chunk.begin; first < chunk.end; first += kTilePixels) {
    const int pixels = min(kTilePixels, chunk.end - first);
    PixelMaps<A> pixel_maps;
    if (net < 2 && pixel < pixels) pixel_maps.load(maps, level.pixels, net, first + pixel);
    auto projections = [&](int c, int at, A(&sum)[2]) {
      sum[0] += element<A>(grad_s, c) * student(c, first + at);
      sum[1] += element<A>(grad_t, c) * teacher(c, first + at);
    };
    sum_pixels<2>(student.channels_dense(), level.channels, pixels, step.part, projections);
    __syncthreads();
    finish_factors(step, up, pixel_maps, net ? mean_t : mean_s, first, key_sum);
    __syncthreads();
    const BackwardTile<A> tile{step,           student, teacher, grad,      level.grad.data != nullptr,
                               level.channels, first,   pixels,  up.direct, parts};
    if (student.channels_dense())
      tile.write_columns(factors, first == chunk.begin);
    else
      tile.write_rows(factors, first == chunk.begin);
  }
  write_key_numbers<A, kTilePixels>(key_sum, level.channels, parts);
}

}  // namespace fgd::cuda::generic

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, A)                                                                                            \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::generic::backward<A>(p);                                                                                \
  }
FGD_KERNEL(fgd_backward_generic_f32, float)
FGD_KERNEL(fgd_backward_generic_f64, double)

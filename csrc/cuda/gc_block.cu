// Forward of the GcBlock pairs: r = v_s - v_t,  v = W2·relu(LN(W1·ctx + b1)·γ + β) + b2, and the loss's four terms.
//
//   hidden  hidden_sums [N][K] = W1·ctx + b1 of every level and net, in `finish` (merge.cu)
//   added   stats[kStatShift] = r;  stats[kStatShiftGrad]: D1 becomes ∂L_gl/∂r = 2·(D1 + P·r)
//           shift_parts: r·(∂L_gl/∂r - P·r), summed over the channels of a block
//   terms   in the last block of `added`, without GcBlocks a launch of its own
//           L_gl = Σc ( D2 + 2·r·D1 + P·r² ) = Σc D2 + Σ shift_parts; weighted terms of every level, and sums
#include "gc.cuh"

namespace fgd::cuda {

// W2[c]·relu(..) + b2[c] of up to kGcImages images from `first` on; by one warp. Lane i < kGcImages is left with image
// first + owned_sum(i). In float64: the global term multiplies an error of it with the number of pixels.
template <class A>
FGD_DEVICE double added_value(const Net<A>& net, int first, int c, const double* mean, const double* scale) {
  const A* weight = net.w2 + int64_t{c} * net.hidden;
  double sum[kGcImages] = {};
  for (int k = lane_index(); k < net.hidden; k += 32) {
    const double w = weight[k], gamma = net.gamma[k], beta = net.beta[k];
#pragma unroll
    for (int i = 0; i < kGcImages; ++i) {
      if (first + i >= net.images) continue;
      const double x = (net.hidden_sums[int64_t{first + i} * net.hidden + k] - mean[i]) * scale[i] * gamma + beta;
      sum[i] += w * (x > 0 || x != x ? x : 0.);  // a NaN stays one
    }
  }
  return sum_over_lanes<kGcImages, 1, 32>(sum, lane_index()) + net.b2[c];
}

// r and ∂L_gl/∂r of a channel and an image; returns r·(∂L_gl/∂r - P·r).
template <class A>
FGD_DEVICE double write_shift(const GcLevel& level, int image, int c, double r) {
  A* stats = static_cast<A*>(level.stats) + int64_t{image} * kStats * level.channels;
  const double gradient = 2 * (stats[kStatShiftGrad * level.channels + c] + level.pixels * r);
  stats[kStatShift * level.channels + c] = static_cast<A>(r);
  stats[kStatShiftGrad * level.channels + c] = static_cast<A>(gradient);
  return r * (gradient - level.pixels * r);
}

// One warp a channel, for up to kGcImages images.
template <class A>
FGD_DEVICE void write_shifts(const GcParams& p) {
  __shared__ double mean[2][kGcImages], scale[2][kGcImages];
  __shared__ double part[kGcRows][kGcImages];
  const GcLevel& level = p.levels[level_of_block(p.levels, p.level_count, blockIdx.x)];
  const int rows = blocks_of(level.channels, kGcRows), index = blockIdx.x - level.first_block;
  const int warp = warp_index(), lane = lane_index(), row = index % rows, first = index / rows * kGcImages;
  const Net<A> student(p, level, 0), teacher(p, level, 1);
  const int64_t n = min(first + warp, p.images - 1);  // kGcImages is the number of warps: an image each
  const Moments s(student.hidden_sums + n * student.hidden, student.hidden);
  const Moments t(teacher.hidden_sums + n * teacher.hidden, teacher.hidden);
  if (lane == 0) {
    mean[0][warp] = s.mean, scale[0][warp] = s.scale;
    mean[1][warp] = t.mean, scale[1][warp] = t.scale;
  }
  __syncthreads();
  const int c = row * kGcRows + warp, image = owned_sum<kGcImages, 1>(lane);
  double term = 0;
  if (c < level.channels) {
    const double v_s = added_value(student, first, c, mean[0], scale[0]);
    const double v_t = added_value(teacher, first, c, mean[1], scale[1]);
    if (lane < kGcImages && first + image < p.images) term = write_shift<A>(level, first + image, c, v_s - v_t);
  }
  if (lane < kGcImages) part[warp][image] = term;
  __syncthreads();
  if (threadIdx.x >= kGcImages || first + static_cast<int>(threadIdx.x) >= p.images) return;
  double sum = 0;
#pragma unroll
  for (int w = 0; w < kGcRows; ++w) sum += part[w][threadIdx.x];
  level.shift_parts[int64_t{first + static_cast<int>(threadIdx.x)} * rows + row] = sum;
}

static_assert(kGcImages == kWarps && kGcRows == kWarps, "a warp takes an image's moments, then a row");

// One block: a warp takes a level, a lane every 32nd image.
template <class A>
FGD_DEVICE void terms(const TermsParams& p) {
  A* out = static_cast<A*>(p.terms) + int64_t{p.first_level} * kTerms;
  const int l = warp_index();
  if (l < p.level_count) {
    const auto& level = p.levels[l];
    const int parts = p.has_gc_block ? blocks_of(level.channels, kGcRows) : 0;
    const volatile double* shift_parts = level.shift_parts;  // perhaps of this launch's other blocks
    double sum[kTerms] = {};
    for (int n = lane_index(); n < p.images; n += 32) {
      const double* numbers = level.image_numbers + int64_t{n} * kImageNumbers + kImageTerms;
#pragma unroll
      for (int t = 0; t < kTerms; ++t) sum[t] += t == kGlobal && !p.has_gc_block ? 0. : numbers[t];
#pragma unroll 8
      for (int i = 0; i < parts; ++i) sum[kGlobal] += shift_parts[int64_t{n} * parts + i];
    }
#pragma unroll
    for (int t = 0; t < kTerms; ++t) {
      const double total = add_over_lanes<1, 32>(sum[t]);
      if (lane_index() == 0) out[l * kTerms + t] = static_cast<A>(total * level.weights[t]);
    }
  }
  __syncthreads();
  const int k = threadIdx.x;
  if (k >= kTerms) return;
  const A* all = static_cast<const A*>(p.terms);
  double total = 0;
  for (int i = 0; i < p.first_level + p.level_count; ++i) total += all[i * kTerms + k];
  *static_cast<A*>(p.sums[k]) = static_cast<A>(total);
}

static_assert(kMaxLevels <= kWarps, "a warp a level");

// Whether all other blocks of the launch have come here before; then all that they wrote can be read.
FGD_DEVICE bool is_last_block(unsigned* done) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(done, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

template <class A>
FGD_DEVICE void added(const GcAddedParams& p) {
  write_shifts<A>(p.gc);
  if (is_last_block(p.done)) terms<A>(p.terms);
}

}  // namespace fgd::cuda

using fgd::cuda::GcAddedParams;
using fgd::cuda::TermsParams;

#define FGD_KERNEL(name, Params, step)                                                                          \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ Params p) { \
    step(p);                                                                                                    \
  }
FGD_KERNEL(fgd_gc_added_f32, GcAddedParams, fgd::cuda::added<float>)
FGD_KERNEL(fgd_gc_added_f64, GcAddedParams, fgd::cuda::added<double>)
FGD_KERNEL(fgd_terms_f32, TermsParams, fgd::cuda::terms<float>)
FGD_KERNEL(fgd_terms_f64, TermsParams, fgd::cuda::terms<double>)

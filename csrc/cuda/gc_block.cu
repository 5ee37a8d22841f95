// Forward of the GcBlock pairs: r = v_s - v_t,  v = W2·relu(LN(W1·ctx + b1)·γ + β) + b2, and the loss's four terms.
//
//   hidden  hidden_sums [N][K] = W1·ctx + b1 of every level and net
//   added   stats[kStatShift] = r;  stats[kStatShiftGrad]: D1 becomes ∂L_gl/∂r = 2·(D1 + P·r)
//   terms   L_gl = Σc ( D2 + 2·r·D1 + P·r² ) = Σc D2 + Σc r·(∂L_gl/∂r - P·r); weighted terms of every level, and sums
#include "gc.cuh"

namespace fgd::cuda {

template <class A>
FGD_DEVICE void hidden(const GcParams& p) {
  const NetJob job =
      net_job(p, [&](const GcLevel& level, int net) { return gc_row_blocks(hidden_of(level, net), p.images); });
  write_hidden(Net<A>(p, p.levels[job.level], job.net), job.index);
}

// W2[c]·relu(..) + b2[c] of one image; by one warp.
template <class A>
FGD_DEVICE A added_value(const Net<A>& net, int image, int c, A mean, A scale) {
  const A* hidden = net.hidden_sums + int64_t{image} * net.hidden;
  const A* weight = net.w2 + int64_t{c} * net.hidden;
  A sum = 0;
  for (int k = lane_index(); k < net.hidden; k += 32) {
    const A x = (hidden[k] - mean) * scale * net.gamma[k] + net.beta[k];
    sum += weight[k] * (x > 0 || x != x ? x : A{0});  // a NaN stays one
  }
  return add_over_lanes<1, 32>(sum) + net.b2[c];
}

// One warp a channel, for up to kGcImages images.
template <class A>
FGD_DEVICE void added(const GcParams& p) {
  __shared__ A mean[2][kGcImages], scale[2][kGcImages];
  const GcLevel& level = p.levels[level_of_block(p.levels, p.level_count, blockIdx.x)];
  const int rows = blocks_of(level.channels, kGcRows), index = blockIdx.x - level.first_block;
  const int c = index % rows * kGcRows + warp_index(), first = index / rows * kGcImages;
  const Net<A> student(p, level, 0), teacher(p, level, 1);
  if (first + warp_index() < p.images) {  // kGcImages is the number of warps: an image each
    const int64_t n = first + warp_index();
    const Moments<A> s(student.hidden_sums + n * student.hidden, student.hidden);
    const Moments<A> t(teacher.hidden_sums + n * teacher.hidden, teacher.hidden);
    if (lane_index() == 0) {
      mean[0][warp_index()] = s.mean, scale[0][warp_index()] = s.scale;
      mean[1][warp_index()] = t.mean, scale[1][warp_index()] = t.scale;
    }
  }
  __syncthreads();
  if (c >= level.channels) return;
  for (int i = 0; i < kGcImages && first + i < p.images; ++i) {
    const A r = added_value(student, first + i, c, mean[0][i], scale[0][i]) -
                added_value(teacher, first + i, c, mean[1][i], scale[1][i]);
    if (lane_index() != 0) continue;
    A* stats = static_cast<A*>(level.stats) + int64_t{first + i} * kStats * level.channels;
    A& gradient = stats[kStatShiftGrad * level.channels + c];
    stats[kStatShift * level.channels + c] = r;
    gradient = 2 * (gradient + level.pixels * r);
  }
}

static_assert(kGcImages == kWarps, "a warp takes an image's moments");

// Σc r·(∂L_gl/∂r - P·r) of an image; by one warp.
template <class A>
FGD_DEVICE double shift_term(const A* stats, int channels, int pixels) {
  double sum = 0;
  for (int c = lane_index(); c < channels; c += 32) {
    const double r = stats[kStatShift * channels + c], gradient = stats[kStatShiftGrad * channels + c];
    sum += r * (gradient - pixels * r);
  }
  return add_over_lanes<1, 32>(sum);
}

// One block: a warp takes every eighth image of a level.
template <class A>
FGD_DEVICE void terms(const TermsParams& p) {
  __shared__ double part[kWarps][kTerms];
  const int k = threadIdx.x;
  A* out = static_cast<A*>(p.terms);
  for (int l = 0; l < p.level_count; ++l) {
    const auto& level = p.levels[l];
    double sum[kTerms] = {};
    for (int n = warp_index(); n < p.images; n += kWarps) {
      const double* numbers = level.image_numbers + int64_t{n} * kImageNumbers + kImageTerms;
#pragma unroll
      for (int t = 0; t < kTerms; ++t) sum[t] += t == kGlobal && !p.has_gc_block ? 0. : numbers[t];
      if (!p.has_gc_block) continue;
      const A* stats = static_cast<const A*>(level.stats) + int64_t{n} * kStats * level.channels;
      sum[kGlobal] += shift_term(stats, level.channels, level.pixels);
    }
    __syncthreads();
    if (lane_index() == 0)
#pragma unroll
      for (int t = 0; t < kTerms; ++t) part[warp_index()][t] = sum[t];
    __syncthreads();
    if (k >= kTerms) continue;
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += part[w][k];
    out[(p.first_level + l) * kTerms + k] = static_cast<A>(total * level.weights[k]);
  }
  if (k >= kTerms) return;
  double total = 0;
  for (int l = 0; l < p.first_level + p.level_count; ++l) total += out[l * kTerms + k];
  *static_cast<A*>(p.sums[k]) = static_cast<A>(total);
}

}  // namespace fgd::cuda

using fgd::cuda::GcParams;
using fgd::cuda::TermsParams;

#define FGD_KERNEL(name, Params, step)                                                                          \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ Params p) { \
    step(p);                                                                                                    \
  }
FGD_KERNEL(fgd_gc_hidden_f32, GcParams, fgd::cuda::hidden<float>)
FGD_KERNEL(fgd_gc_hidden_f64, GcParams, fgd::cuda::hidden<double>)
FGD_KERNEL(fgd_gc_added_f32, GcParams, fgd::cuda::added<float>)
FGD_KERNEL(fgd_gc_added_f64, GcParams, fgd::cuda::added<double>)
FGD_KERNEL(fgd_terms_f32, TermsParams, fgd::cuda::terms<float>)
FGD_KERNEL(fgd_terms_f64, TermsParams, fgd::cuda::terms<double>)

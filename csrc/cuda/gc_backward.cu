// Backward of the GcBlock pairs, from ∂L/∂v = ±g·∂L_gl/∂r  (v, LN and the rest as in gc.cuh)
//
//   backward_hidden   hidden_sums = W1·ctx + b1 once more, and active_grad [N][K] = W2ᵀ·∂L/∂v
//   backward_context  hidden_grad [N][K]: relu and LayerNorm;  context_grad [N][C] = W1ᵀ·hidden_grad
//   parameter_grads   sums over the images, and for the keys Wk over the chunks' parts; ∂L/∂bk = 0, since a shift of
//                     all logits changes no softmax, but not where Σ f is no number
#include "gc.cuh"
#include "generic.cuh"

namespace fgd::cuda {

// Σ over a matrix's rows of factor(n, row)·matrix[row][column], lanes being columns and warps taking every eighth row;
// part: [kGcImages][kWarps][32]. Warp w is left with image first + w's sum of the lane's column.
template <class A, class F>
FGD_DEVICE A multiply_transposed(const A* matrix, int rows, int columns, int column, int images, const F& factor,
                                 A (*part)[kWarps][32]) {
  A sum[kGcImages] = {};
  if (column < columns)
    for (int row = warp_index(); row < rows; row += kWarps) {
      const A weight = matrix[int64_t{row} * columns + column];
#pragma unroll
      for (int i = 0; i < kGcImages; ++i)
        if (i < images) sum[i] += factor(i, row) * weight;
    }
#pragma unroll
  for (int i = 0; i < kGcImages; ++i) part[i][warp_index()][lane_index()] = sum[i];
  __syncthreads();
  A total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += part[warp_index()][w][lane_index()];
  return total;
}

template <class A>
FGD_DEVICE void backward_hidden(const GcParams& p) {
  __shared__ A part[kGcImages][kWarps][32];
  const NetJob job = net_job(p, [&](const GcLevel& level, int net) {
    return gc_row_blocks(hidden_of(level, net), p.images) + gc_column_blocks(hidden_of(level, net), p.images);
  });
  const GcLevel& level = p.levels[job.level];
  const Net<A> net(p, level, job.net);
  const int index = job.index - gc_row_blocks(net.hidden, p.images);
  if (index < 0) {
    write_hidden(hidden_input(net), job.index);
    return;
  }
  const int columns = blocks_of(net.hidden, 32), first = index / columns * kGcImages;
  const int k = index % columns * 32 + lane_index(), images = min(kGcImages, p.images - first);
  const AddedGrad<A> grad(p, level, job.net);
  const A sum = multiply_transposed(
      net.w2, net.channels, net.hidden, k, images, [&](int i, int c) { return grad(first + i, c); }, part);
  if (k < net.hidden && warp_index() < images) net.active_grad[int64_t{first + warp_index()} * net.hidden + k] = sum;
}

// x = (h - mean)·scale;  ∂L/∂x, and ∂L/∂h = scale·(∂x - mean(∂x) - x·mean(∂x·x)).
template <class A>
struct HiddenGrad {
  A mean, scale, mean_grad, mean_product;
};

template <class A>
struct HiddenUnit {
  A x, active, active_grad;  // active: relu(x·γ + β); active_grad: ∂L/∂(x·γ + β)
  FGD_DEVICE HiddenUnit(const Net<A>& net, int image, int k, A mean, A scale) {
    const int64_t at = int64_t{image} * net.hidden + k;
    x = (net.hidden_sums[at] - mean) * scale;
    const A y = x * net.gamma[k] + net.beta[k];
    active = y <= 0 ? A{0} : y;  // a NaN stays one, and its gradient passes
    active_grad = y <= 0 ? A{0} : net.active_grad[at];
  }
};

// By one warp.
template <class A>
FGD_DEVICE HiddenGrad<A> hidden_grad_of(const Net<A>& net, int image) {
  const Moments m(net.hidden_sums + int64_t{image} * net.hidden, net.hidden);
  const A mean = static_cast<A>(m.mean), scale = static_cast<A>(m.scale);
  A sum = 0, product = 0;
  for (int k = lane_index(); k < net.hidden; k += 32) {
    const HiddenUnit<A> unit(net, image, k, mean, scale);
    const A grad = unit.active_grad * net.gamma[k];
    sum += grad;
    product += grad * unit.x;
  }
  return {mean, scale, add_over_lanes<1, 32>(sum) / net.hidden, add_over_lanes<1, 32>(product) / net.hidden};
}

template <class A>
FGD_DEVICE A hidden_grad(const Net<A>& net, int image, int k, const HiddenGrad<A>& h) {
  const HiddenUnit<A> unit(net, image, k, h.mean, h.scale);
  return h.scale * (unit.active_grad * net.gamma[k] - h.mean_grad - unit.x * h.mean_product);
}

template <class A>
FGD_DEVICE void backward_context(const GcParams& p) {
  __shared__ A part[kGcImages][kWarps][32];
  __shared__ HiddenGrad<A> shared[kGcImages];
  const NetJob job = net_job(p, [&](const GcLevel& level, int) { return gc_column_blocks(level.channels, p.images); });
  const Net<A> net(p, p.levels[job.level], job.net);
  const int columns = blocks_of(net.channels, 32), first = job.index / columns * kGcImages;
  const int c = job.index % columns * 32 + lane_index(), images = min(kGcImages, p.images - first);
  const int image = first + warp_index();
  if (lane_index() == 0) shared[warp_index()] = {};
  if (warp_index() < images) {
    const HiddenGrad<A> h = hidden_grad_of(net, image);
    if (lane_index() == 0) shared[warp_index()] = h;
    if (job.index % columns == 0) {  // once an image, for the parameters' gradients
      if (lane_index() == 0) net.moments[2 * image] = h.mean, net.moments[2 * image + 1] = h.scale;
      for (int k = lane_index(); k < net.hidden; k += 32)
        net.hidden_grad[int64_t{image} * net.hidden + k] = hidden_grad(net, image, k, h);
    }
  }
  __syncthreads();
  const A sum = multiply_transposed(
      net.w1, net.hidden, net.channels, c, images,
      [&](int i, int k) { return hidden_grad(net, first + i, k, shared[i]); }, part);
  if (c < net.channels && warp_index() < images) net.context_grad[int64_t{image} * net.channels + c] = sum;
}

// ---- gradients of the parameters, one element a thread -------------------------------------------------------------

template <class A>
FGD_DEVICE HiddenUnit<A> saved_unit(const Net<A>& net, int image, int k) {
  return HiddenUnit<A>(net, image, k, net.moments[2 * image], net.moments[2 * image + 1]);
}

template <class A>
FGD_DEVICE void write_w1_grad(const Net<A>& net, int64_t element, A* out) {
  if (element >= int64_t{net.hidden} * net.channels) return;
  const int k = element / net.channels, c = element - int64_t{k} * net.channels;
  A sum = 0;
  for (int n = 0; n < net.images; ++n) sum += net.hidden_grad[int64_t{n} * net.hidden + k] * net.context_of(n)[c];
  out[element] = sum;
}

template <class A>
FGD_DEVICE void write_w2_grad(const Net<A>& net, const AddedGrad<A>& grad, int64_t element, A* out) {
  if (element >= int64_t{net.hidden} * net.channels) return;
  const int c = element / net.hidden, k = element - int64_t{c} * net.hidden;
  A sum = 0;
  for (int n = 0; n < net.images; ++n) sum += grad(n, c) * saved_unit(net, n, k).active;
  out[element] = sum;
}

// out(tensor): where a gradient of this net goes, by the student's tensor of its kind.
template <class A, class Out>
FGD_DEVICE void write_vector_grads(const Net<A>& net, const AddedGrad<A>& grad, int i, const Out& out) {
  if (i < net.hidden) {
    A bias = 0, gamma = 0, beta = 0;
    for (int n = 0; n < net.images; ++n) {
      const HiddenUnit<A> unit = saved_unit(net, n, i);
      bias += net.hidden_grad[int64_t{n} * net.hidden + i];
      gamma += unit.active_grad * unit.x;
      beta += unit.active_grad;
    }
    out(kGcB1S)[i] = bias;
    out(kGcLnWeightS)[i] = gamma;
    out(kGcLnBiasS)[i] = beta;
  }
  if (i < net.channels) {
    A bias = 0;
    for (int n = 0; n < net.images; ++n) bias += grad(n, i);
    out(kGcB2S)[i] = bias;
  }
}

// Σ f of an image, its peak left out, and that peak or -1; by one warp, which all gets it.
struct ImageKey {
  double total = 0;
  int peak = -1;
  template <class A>
  FGD_DEVICE ImageKey(const GcLevel& level, const Net<A>& net, int image) {
    for (int i = lane_index(); i < level.chunks; i += 32) {
      const A* parts =
          static_cast<const A*>(level.key_parts) + (int64_t{image} * level.chunks + i) * key_stride(net.channels);
      const auto* numbers = reinterpret_cast<const KeyNumbers<A>*>(parts + 2 * net.channels);
      total += numbers->total[net.net];
      peak = max(peak, numbers->peak[net.net]);
    }
    total = add_over_lanes<1, 32>(total);
    peak = max_over_lanes<1, 32>(peak);
  }
};

// The two sums of ∂L/∂Wk differ by so little, relatively, only where a map is constant: Σ f·F is then F·Σ f, both are
// rounding (Σ f = 0), and what is left of them is the square of one. Its truth is 0.
constexpr double kConstantMap = 0x1p-18;

// Lanes are channels; warps take every eighth part and every eighth image, and are added in order.
template <class A>
FGD_DEVICE void write_key_grad(const GcParams& p, const GcLevel& level, const Net<A>& net, int block, A* weight,
                               A* bias) {
  __shared__ double part[kWarps][32], rounding[kWarps][32];
  const int c = block * 32 + lane_index(), type = net.net ? p.teacher_type : p.student_type;
  const int64_t count = int64_t{net.images} * level.chunks;
  const A* parts = static_cast<const A*>(level.key_parts) + int64_t{net.net} * net.channels;
  double sum = 0, size = 0;  // size: of what is rounding, Σ |ctx·Σ f| over the images
  if (c < net.channels)
#pragma unroll 4
    for (int64_t i = warp_index(); i < count; i += kWarps) sum += parts[i * key_stride(net.channels) + c];
  for (int n = warp_index(); n < net.images; n += kWarps) {
    const ImageKey key(level, net, n);
    if (c >= net.channels) continue;
    const generic::Plane<A> plane(net.net ? level.teacher : level.student, n, type);
    const double subtracted = key.total * (key.peak < 0 ? net.context_of(n)[c] : plane(c, key.peak));
    sum -= subtracted;
    if (key.peak < 0) size += fabs(subtracted);
  }
  part[warp_index()][lane_index()] = sum;
  rounding[warp_index()][lane_index()] = size;
  __syncthreads();
  if (warp_index() != 0) return;
  double total = 0;
  size = 0;
  for (int w = 0; w < kWarps; ++w) total += part[w][lane_index()], size += rounding[w][lane_index()];
  if (c < net.channels) weight[c] = fabs(total) < kConstantMap * size ? A{0} : static_cast<A>(total);
  if (c == 0) *bias = static_cast<A>(0 * total);  // NaN where Σ f is no number
}

template <class A>
FGD_DEVICE void parameter_grads(const GcParameterParams& params) {
  const GcParams& p = params.gc;
  NetJob job = net_job(
      p, [](const GcLevel& level, int net) { return gc_parameter_blocks(level.channels, hidden_of(level, net)); });
  const GcLevel& level = p.levels[job.level];
  const Net<A> net(p, level, job.net);
  const AddedGrad<A> grad(p, level, job.net);
  auto out = [&](GcTensor of_student) {
    return static_cast<A*>(params.grads[job.level][gc_tensor(job.net, of_student)]);
  };
  const int matrix = gc_matrix_blocks(net.channels, net.hidden), vector = gc_vector_blocks(net.channels, net.hidden);
  const int64_t element = int64_t{job.index} * kThreads + threadIdx.x, size = int64_t{matrix} * kThreads;
  if (job.index < matrix)
    write_w1_grad(net, element, out(kGcW1S));
  else if (job.index < 2 * matrix)
    write_w2_grad(net, grad, element - size, out(kGcW2S));
  else if (job.index < 2 * matrix + vector)
    write_vector_grads(net, grad, static_cast<int>(element - 2 * size), out);
  else
    write_key_grad(p, level, net, job.index - 2 * matrix - vector, out(kGcKeyS), out(kGcKeyBiasS));
}

}  // namespace fgd::cuda

using fgd::cuda::GcParameterParams;
using fgd::cuda::GcParams;

#define FGD_KERNEL(name, Params, step)                                                                          \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ Params p) { \
    step(p);                                                                                                    \
  }
FGD_KERNEL(fgd_gc_backward_hidden_f32, GcParams, fgd::cuda::backward_hidden<float>)
FGD_KERNEL(fgd_gc_backward_hidden_f64, GcParams, fgd::cuda::backward_hidden<double>)
FGD_KERNEL(fgd_gc_backward_context_f32, GcParams, fgd::cuda::backward_context<float>)
FGD_KERNEL(fgd_gc_backward_context_f64, GcParams, fgd::cuda::backward_context<double>)
FGD_KERNEL(fgd_gc_parameter_grads_f32, GcParameterParams, fgd::cuda::parameter_grads<float>)
FGD_KERNEL(fgd_gc_parameter_grads_f64, GcParameterParams, fgd::cuda::parameter_grads<double>)

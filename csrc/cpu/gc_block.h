// The GcBlock's transform (12) for all images of a level:  v = W2·relu(LN(W1·ctx + b1)·γ + β) + b2, and its gradient.
// Matrices are read once, row after row; images are the inner loop. O(N·C²) work, small beside the features, and all of
// it in float64: the global term multiplies an error of v with the number of pixels.
#pragma once

#include "chunk.h"
#include "simd.h"

namespace fgd::cpu::FGD_ISA {

template <class X, class Y>
inline double dot(const X* x, const Y* y, int n) {
  constexpr int W = kWidth<double>;
  Vec<double> sum[4] = {};
  int i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    FGD_UNROLL
    for (int k = 0; k < 4; ++k)
      sum[k] = multiply_add<double>(load<double>(x + i + k * W), load<double>(y + i + k * W), sum[k]);
  }
  double total = sum_lanes<double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < n; ++i) total += static_cast<double>(x[i]) * y[i];
  return total;
}

// y += Σi factor[i]·x[i], `rows` rows of n numbers: four at a time, so that y is read and written less often.
template <class A>
inline void add_rows(const double* factor, const A* x, int rows, double* y, int n) {
  constexpr int W = kWidth<double>;
  for (; rows >= 4; rows -= 4, x += int64_t{4} * n, factor += 4) {
    int i = 0;
    for (; i + W <= n; i += W) {
      Vec<double> sum = load<double>(y + i);
      FGD_UNROLL
      for (int k = 0; k < 4; ++k) sum = multiply_add<double>(broadcast(factor[k]), load<double>(x + k * n + i), sum);
      store<double>(y + i, sum);
    }
    for (; i < n; ++i)
      for (int k = 0; k < 4; ++k) y[i] += factor[k] * x[k * n + i];
  }
  for (; rows > 0; --rows, x += n, ++factor)
    for (int i = 0; i < n; ++i) y[i] += *factor * x[i];
}

// out[i] = Σn factor[n·factor_stride]·x[n·stride + i] of `images` images.
template <class A, class X>
inline void write_row(const double* factor, int factor_stride, const X* x, int64_t stride, int images, A* out, int n) {
  constexpr int W = kWidth<double>;
  int i = 0;
  for (; i + W <= n; i += W) {
    Vec<double> sum{};
    for (int m = 0; m < images; ++m)
      sum = multiply_add<double>(broadcast(factor[m * factor_stride]), load<double>(x + m * stride + i), sum);
    store<double>(out + i, sum);
  }
  for (; i < n; ++i) {
    double sum = 0;
    for (int m = 0; m < images; ++m) sum += factor[m * factor_stride] * x[m * stride + i];
    out[i] = static_cast<A>(sum);
  }
}

// Statistics of one hidden vector: mean and 1 / sqrt(variance + 1e-5), as torch.nn.LayerNorm has them.
inline void moments(const double* hidden, int n, double* mean, double* scale) {
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) sum += hidden[i];
  *mean = sum / n;
  for (int i = 0; i < n; ++i) squares += (hidden[i] - *mean) * (hidden[i] - *mean);
  *scale = 1 / __builtin_sqrt(squares / n + 1e-5);
}

template <class A>
inline void hidden_layer(const GcTransform<A>& g, const A* context, int64_t stride, double* hidden) {
  for (int k = 0; k < g.hidden; ++k)
    for (int n = 0; n < g.images; ++n)
      hidden[n * g.hidden + k] = dot(g.w1 + int64_t{k} * g.channels, context + n * stride, g.channels) + g.b1[k];
}

template <class A>
void transform(const GcTransform<A>& g, const A* context, int64_t stride, double* added, double* hidden) {
  hidden_layer(g, context, stride, hidden);
  for (int n = 0; n < g.images; ++n) {
    double *h = hidden + n * g.hidden, mean, scale;
    moments(h, g.hidden, &mean, &scale);
    for (int k = 0; k < g.hidden; ++k) {
      const double x = (h[k] - mean) * scale * g.ln_weight[k] + g.ln_bias[k];
      h[k] = x <= 0 ? 0 : x;  // a NaN stays one, here and below
    }
  }
  for (int c = 0; c < g.channels; ++c)
    for (int n = 0; n < g.images; ++n)
      added[int64_t{n} * g.channels + c] = dot(g.w2 + int64_t{c} * g.hidden, hidden + n * g.hidden, g.hidden) + g.b2[c];
}

// From ∂L/∂v (grad_added, [N][C]) to ∂L/∂ctx ([N][C]) and, where asked for (grads.w1 not null), to the parameters'
// gradients, which are written, not added to. scratch: [3][N][K], [N][C], [2][K].
template <class A>
void transform_backward(const GcTransform<A>& g, const GcTransformGrads<A>& grads, const A* context, int64_t stride,
                        const double* grad_added, A* grad_context, double* scratch) {
  const int64_t size = int64_t{g.images} * g.hidden, C = g.channels;
  double *normal = scratch, *active = scratch + size, *grad = scratch + 2 * size, *context_sum = scratch + 3 * size;
  double* norm = context_sum + g.images * C;  // ∂L/∂γ, ∂L/∂β
  hidden_layer(g, context, stride, normal);
  for (int64_t i = 0; i < size; ++i) grad[i] = 0;
  for (int64_t i = 0; i < g.images * C + 2 * g.hidden; ++i) context_sum[i] = 0;
  // ∂L/∂relu = W2ᵀ·∂L/∂v
  constexpr int kRows = 32;  // of a matrix, at a time: they stay in cache for all images
  for (int c = 0; c < g.channels; c += kRows)
    for (int n = 0; n < g.images; ++n)
      add_rows(grad_added + n * C + c, g.w2 + int64_t{c} * g.hidden, g.channels - c < kRows ? g.channels - c : kRows,
               grad + n * g.hidden, g.hidden);
  for (int n = 0; n < g.images; ++n) {
    double *x = normal + n * g.hidden, *a = active + n * g.hidden, *dx = grad + n * g.hidden, mean, scale;
    moments(x, g.hidden, &mean, &scale);
    double sum = 0, product = 0;
    for (int k = 0; k < g.hidden; ++k) {
      x[k] = (x[k] - mean) * scale;
      const double y = x[k] * g.ln_weight[k] + g.ln_bias[k], dy = y <= 0 ? 0 : dx[k];
      a[k] = y <= 0 ? 0 : y;
      norm[k] += dy * x[k];
      norm[g.hidden + k] += dy;
      dx[k] = dy * g.ln_weight[k];
      sum += dx[k];
      product += dx[k] * x[k];
    }
    // LayerNorm: ∂L/∂h = scale·(∂x - mean(∂x) - x·mean(∂x·x))
    for (int k = 0; k < g.hidden; ++k) dx[k] = scale * (dx[k] - sum / g.hidden - x[k] * (product / g.hidden));
  }
  for (int k = 0; k < g.hidden; k += kRows)
    for (int n = 0; n < g.images; ++n)
      add_rows(grad + n * g.hidden + k, g.w1 + k * C, g.hidden - k < kRows ? g.hidden - k : kRows, context_sum + n * C,
               g.channels);
  for (int64_t i = 0; i < g.images * C; ++i) grad_context[i] = static_cast<A>(context_sum[i]);
  if (!grads.w1) return;
  const A one = 1;
  for (int k = 0; k < g.hidden; ++k) {
    grads.ln_weight[k] = static_cast<A>(norm[k]);
    grads.ln_bias[k] = static_cast<A>(norm[g.hidden + k]);
    write_row(grad + k, g.hidden, context, stride, g.images, grads.w1 + k * C, g.channels);
    write_row(grad + k, g.hidden, &one, 0, g.images, grads.b1 + k, 1);
  }
  for (int c = 0; c < g.channels; ++c) {
    write_row(grad_added + c, g.channels, active, g.hidden, g.images, grads.w2 + int64_t{c} * g.hidden, g.hidden);
    write_row(grad_added + c, g.channels, &one, 0, g.images, grads.b2 + c, 1);
  }
}

}  // namespace fgd::cpu::FGD_ISA

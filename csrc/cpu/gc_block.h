// The GcBlock's transform (12) for all images of a level:  v = W2·relu(LN(W1·ctx + b1)·γ + β) + b2, and its gradient.
// Matrices are read once, row after row; images are the inner loop. O(N·C²) work, small beside the features.
#pragma once

#include "chunk.h"
#include "simd.h"

namespace fgd::cpu::FGD_ISA {

template <class A>
inline A dot(const A* x, const A* y, int n) {
  constexpr int W = kWidth<A>;
  Vec<A> sum[4] = {};
  int i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    FGD_UNROLL
    for (int k = 0; k < 4; ++k) sum[k] = multiply_add<A>(load<A>(x + i + k * W), load<A>(y + i + k * W), sum[k]);
  }
  A total = sum_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < n; ++i) total += x[i] * y[i];
  return total;
}

// y += factor·x
template <class A>
inline void axpy(A factor, const A* x, A* y, int n) {
  constexpr int W = kWidth<A>;
  int i = 0;
  for (; i + W <= n; i += W) store<A>(y + i, multiply_add<A>(broadcast(factor), load<A>(x + i), load<A>(y + i)));
  for (; i < n; ++i) y[i] += factor * x[i];
}

// f·x + g·y, a vector of it.
template <class A>
inline Vec<A> pair(A f, const A* x, A g, const A* y) {
  return multiply_add<A>(broadcast(f), load<A>(x), g * load<A>(y));
}

// y += Σi factor[i]·x[i], rows of n numbers, `rows` of them: four at a time, for a shorter chain of roundings.
template <class A>
inline void add_rows(const A* factor, const A* x, int rows, A* y, int n) {
  constexpr int W = kWidth<A>;
  int row = 0;
  for (; row + 4 <= rows; row += 4, x += int64_t{4} * n, factor += 4) {
    const A* f = factor;
    int i = 0;
    for (; i + W <= n; i += W)
      add_to<A>(y + i, pair(f[0], x + i, f[1], x + n + i) + pair(f[2], x + 2 * n + i, f[3], x + 3 * n + i));
    for (; i < n; ++i) y[i] += (f[0] * x[i] + f[1] * x[n + i]) + (f[2] * x[2 * n + i] + f[3] * x[3 * n + i]);
  }
  for (; row < rows; ++row, x += n, ++factor) axpy(factor[0], x, y, n);
}

// Statistics of one hidden vector: mean and 1 / sqrt(variance + 1e-5), as torch.nn.LayerNorm has them.
template <class A>
inline void moments(const A* hidden, int n, A* mean, A* scale) {
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) sum += hidden[i];
  const double center = sum / n;
  for (int i = 0; i < n; ++i) squares += (hidden[i] - center) * (hidden[i] - center);
  *mean = static_cast<A>(center);
  *scale = static_cast<A>(1 / __builtin_sqrt(squares / n + 1e-5));
}

template <class A>
inline void hidden_layer(const GcTransform<A>& g, const A* context, int64_t stride, A* hidden) {
  for (int k = 0; k < g.hidden; ++k)
    for (int n = 0; n < g.images; ++n)
      hidden[n * g.hidden + k] = dot(g.w1 + int64_t{k} * g.channels, context + n * stride, g.channels) + g.b1[k];
}

template <class A>
void transform(const GcTransform<A>& g, const A* context, int64_t stride, A* added, A* hidden) {
  hidden_layer(g, context, stride, hidden);
  for (int n = 0; n < g.images; ++n) {
    A *h = hidden + n * g.hidden, mean, scale;
    moments(h, g.hidden, &mean, &scale);
    for (int k = 0; k < g.hidden; ++k) {
      const A x = (h[k] - mean) * scale * g.ln_weight[k] + g.ln_bias[k];
      h[k] = x <= 0 ? 0 : x;  // a NaN stays one, here and below
    }
  }
  for (int c = 0; c < g.channels; ++c)
    for (int n = 0; n < g.images; ++n)
      added[int64_t{n} * g.channels + c] = dot(g.w2 + int64_t{c} * g.hidden, hidden + n * g.hidden, g.hidden) + g.b2[c];
}

// From ∂L/∂v (grad_added, [N][C]) to ∂L/∂ctx ([N][C]) and, where asked for (grads.w1 not null), to the parameters'
// gradients, which are written, not added to. scratch: [3][N][K].
template <class A>
void transform_backward(const GcTransform<A>& g, const GcTransformGrads<A>& grads, const A* context, int64_t stride,
                        const A* grad_added, A* grad_context, A* scratch) {
  const int64_t size = int64_t{g.images} * g.hidden;
  A *normal = scratch, *active = scratch + size, *grad = scratch + 2 * size;
  hidden_layer(g, context, stride, normal);
  for (int64_t i = 0; i < size; ++i) grad[i] = 0;
  for (int64_t i = 0; i < int64_t{g.images} * g.channels; ++i) grad_context[i] = 0;
  // ∂L/∂relu = W2ᵀ·∂L/∂v
  constexpr int kRows = 32;  // of a matrix, at a time: they stay in cache for all images
  for (int c = 0; c < g.channels; c += kRows)
    for (int n = 0; n < g.images; ++n)
      add_rows(grad_added + int64_t{n} * g.channels + c, g.w2 + int64_t{c} * g.hidden,
               g.channels - c < kRows ? g.channels - c : kRows, grad + n * g.hidden, g.hidden);
  if (grads.w1)
    for (int k = 0; k < g.hidden; ++k) grads.ln_weight[k] = grads.ln_bias[k] = grads.b1[k] = 0;
  for (int n = 0; n < g.images; ++n) {
    A *x = normal + n * g.hidden, *a = active + n * g.hidden, *dx = grad + n * g.hidden, mean, scale;
    moments(x, g.hidden, &mean, &scale);
    double sum = 0, product = 0;
    for (int k = 0; k < g.hidden; ++k) {
      x[k] = (x[k] - mean) * scale;
      const A y = x[k] * g.ln_weight[k] + g.ln_bias[k], dy = y <= 0 ? 0 : dx[k];
      a[k] = y <= 0 ? 0 : y;
      if (grads.w1) {
        grads.ln_weight[k] += dy * x[k];
        grads.ln_bias[k] += dy;
      }
      dx[k] = dy * g.ln_weight[k];
      sum += dx[k];
      product += dx[k] * x[k];
    }
    // LayerNorm: ∂L/∂h = scale·(∂x - mean(∂x) - x·mean(∂x·x))
    for (int k = 0; k < g.hidden; ++k) {
      dx[k] = scale * static_cast<A>(dx[k] - sum / g.hidden - x[k] * (product / g.hidden));
      if (grads.w1) grads.b1[k] += dx[k];
    }
  }
  for (int k = 0; k < g.hidden; k += kRows)
    for (int n = 0; n < g.images; ++n)
      add_rows(grad + n * g.hidden + k, g.w1 + int64_t{k} * g.channels, g.hidden - k < kRows ? g.hidden - k : kRows,
               grad_context + int64_t{n} * g.channels, g.channels);
  if (!grads.w1) return;
  for (int k = 0; k < g.hidden; ++k) {
    A* row = grads.w1 + int64_t{k} * g.channels;
    for (int c = 0; c < g.channels; ++c) row[c] = 0;
    for (int n = 0; n < g.images; ++n) axpy(grad[n * g.hidden + k], context + n * stride, row, g.channels);
  }
  for (int c = 0; c < g.channels; ++c) {
    const int64_t row = int64_t{c} * g.hidden;
    for (int k = 0; k < g.hidden; ++k) grads.w2[row + k] = 0;
    A bias = 0;
    for (int n = 0; n < g.images; ++n) {
      const A factor = grad_added[int64_t{n} * g.channels + c];
      axpy(factor, active + n * g.hidden, grads.w2 + row, g.hidden);
      bias += factor;
    }
    grads.b2[c] = bias;
  }
}

}  // namespace fgd::cpu::FGD_ISA

#include "reference.h"

#include <algorithm>
#include <cmath>

namespace reference {
namespace {

Vector softmax(Vector x) {
  double largest = -INFINITY, sum = 0;
  for (double v : x) largest = std::max(largest, v);
  for (double& v : x) sum += v = std::exp(v - largest);
  for (double& v : x) v /= sum;
  return x;
}

double sign(double x) { return x > 0 ? 1 : x < 0 ? -1 : 0; }

// One image of one level, its features as F(c, p).
struct Image {
  const Batch& batch;
  const Level& level;
  int index, C, P;
  Image(const Batch& b, const Level& l, int n) : batch(b), level(l), index(n), C(l.channels), P(l.pixels()) {}
  double at(int net, int c, int p) const { return level.feature[net][(static_cast<size_t>(index) * C + c) * P + p]; }
  double difference(int c, int p) const { return at(0, c, p) - at(1, c, p); }
};

Vector spatial_attention(const Image& x, int net) {
  Vector z(x.P);
  for (int p = 0; p < x.P; ++p)
    for (int c = 0; c < x.C; ++c) z[p] += std::fabs(x.at(net, c, p)) / x.C / x.batch.spatial_temperature;
  z = softmax(z);
  for (double& a : z) a *= x.P;
  return z;
}

Vector channel_attention(const Image& x, int net) {
  Vector z(x.C);
  for (int c = 0; c < x.C; ++c)
    for (int p = 0; p < x.P; ++p) z[c] += std::fabs(x.at(net, c, p)) / x.P / x.batch.channel_temperature;
  z = softmax(z);
  for (double& a : z) a *= x.C;
  return z;
}

Vector background(const Vector& fg) {
  const double count = static_cast<double>(std::count(fg.begin(), fg.end(), 0.));
  Vector bg(fg.size());
  for (size_t p = 0; p < fg.size(); ++p) bg[p] = fg[p] == 0 ? 1 / count : 0;
  return bg;
}

// softmax over pixels of the context logits, and the context vector.
struct Context {
  Vector q, vector;
};

Context context(const Image& x, int net) {
  const Net& w = x.level.net[net];
  Vector logits(x.P, w.tensor[kKeyBias][0]), ctx(x.C);
  for (int p = 0; p < x.P; ++p)
    for (int c = 0; c < x.C; ++c) logits[p] += w.tensor[kKey][c] * x.at(net, c, p);
  const Vector q = softmax(logits);
  for (int c = 0; c < x.C; ++c)
    for (int p = 0; p < x.P; ++p) ctx[c] += q[p] * x.at(net, c, p);
  return {q, ctx};
}

// The hidden layer of the transform: LayerNorm's input standardised, 1 / its deviation, and what comes out of the ReLU.
struct Hidden {
  Vector normal, active;
  double scale;
};

Hidden hidden(const Net& w, const Vector& ctx) {
  const int K = w.hidden, C = static_cast<int>(ctx.size());
  Vector h = w.tensor[kB1], active(K);
  for (int k = 0; k < K; ++k)
    for (int c = 0; c < C; ++c) h[k] += w.tensor[kW1][k * C + c] * ctx[c];
  double mean = 0, variance = 0;
  for (double v : h) mean += v / K;
  for (double v : h) variance += (v - mean) * (v - mean) / K;
  const double scale = 1 / std::sqrt(variance + 1e-5);
  for (int k = 0; k < K; ++k) {
    h[k] = (h[k] - mean) * scale;
    active[k] = std::max(0., h[k] * w.tensor[kNormWeight][k] + w.tensor[kNormBias][k]);
  }
  return {h, active, scale};
}

// v = W2·relu(LN(W1·ctx + b1)) + b2
Vector transform(const Net& w, const Vector& ctx) {
  const Hidden h = hidden(w, ctx);
  Vector v = w.tensor[kB2];
  for (size_t c = 0; c < v.size(); ++c)
    for (int k = 0; k < w.hidden; ++k) v[c] += w.tensor[kW2][c * w.hidden + k] * h.active[k];
  return v;
}

// r = v_s - v_t
Vector shift(const Image& x) {
  Vector r = transform(x.level.net[0], context(x, 0).vector);
  const Vector v = transform(x.level.net[1], context(x, 1).vector);
  for (size_t c = 0; c < r.size(); ++c) r[c] -= v[c];
  return r;
}

double distance(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::fabs(a[i] - b[i]);
  return sum;
}

std::array<double, kTerms> image_terms(const Image& x) {
  std::array<double, kTerms> out{};
  const Vector spatial = spatial_attention(x, 1), channel = channel_attention(x, 1);
  const Vector fg = foreground(x.batch, x.level, x.index), bg = background(fg);
  const Vector r = x.level.has_gc ? shift(x) : Vector(x.C);
  for (int c = 0; c < x.C; ++c)
    for (int p = 0; p < x.P; ++p) {
      const double d = x.difference(c, p), attended = spatial[p] * channel[c] * d * d;
      out[kFg] += fg[p] * attended;
      out[kBg] += bg[p] * attended;
      if (x.level.has_gc) out[kGlobal] += (d + r[c]) * (d + r[c]);
    }
  out[kAttention] = distance(spatial_attention(x, 0), spatial) + distance(channel_attention(x, 0), channel);
  return out;
}

// ---- gradients -----------------------------------------------------------------------------------------------------

void add(Gradient& g, size_t i, double value, double magnitude) {
  g.value[i] += value;
  g.scale = std::max(g.scale, magnitude);
}

// Of Σ |A_s - A_t| with respect to what the student's softmax sees, A_s = n·softmax(z).
Vector attention_gradient(const Vector& student, const Vector& teacher) {
  const size_t n = student.size();
  double mean = 0;
  for (size_t i = 0; i < n; ++i) mean += sign(student[i] - teacher[i]) * student[i] / n;
  Vector out(n);
  for (size_t i = 0; i < n; ++i) out[i] = student[i] * (sign(student[i] - teacher[i]) - mean);
  return out;
}

struct ContextGradient {
  Vector value, magnitude;
};

// From ∂L/∂v to ∂L/∂ctx and the transform's parameters.
ContextGradient transform_gradient(const Net& w, const Vector& ctx, const Vector& grad, Gradient* out) {
  const int K = w.hidden, C = static_cast<int>(ctx.size());
  const Hidden h = hidden(w, ctx);
  Vector normal(K);  // ∂L/∂ of the standardised hidden layer
  double sum = 0, product = 0;
  for (int k = 0; k < K; ++k) {
    double active = 0;
    for (int c = 0; c < C; ++c) {
      active += w.tensor[kW2][c * K + k] * grad[c];
      add(out[kW2], c * K + k, grad[c] * h.active[k], std::fabs(grad[c] * h.active[k]));
    }
    const double y = h.active[k] > 0 ? active : 0;
    add(out[kNormWeight], k, y * h.normal[k], std::fabs(y * h.normal[k]));
    add(out[kNormBias], k, y, std::fabs(y));
    normal[k] = y * w.tensor[kNormWeight][k];
    sum += normal[k];
    product += normal[k] * h.normal[k];
  }
  for (int c = 0; c < C; ++c) add(out[kB2], c, grad[c], std::fabs(grad[c]));
  ContextGradient context{Vector(C), Vector(C)};
  for (int k = 0; k < K; ++k) {
    const double g = h.scale * (normal[k] - sum / K - h.normal[k] * product / K);
    const double magnitude =
        h.scale * (std::fabs(normal[k]) + std::fabs(sum / K) + std::fabs(h.normal[k] * product / K));
    add(out[kB1], k, g, magnitude);
    for (int c = 0; c < C; ++c) {
      add(out[kW1], k * C + c, g * ctx[c], magnitude * std::fabs(ctx[c]));
      context.value[c] += g * w.tensor[kW1][k * C + c];
      context.magnitude[c] += magnitude * std::fabs(w.tensor[kW1][k * C + c]);
    }
  }
  return context;
}

// ∂L/∂F through the context: q·(g_ctx + Wk·(u - ū)), for the student alone; and ∂L/∂Wk.
void add_context(const Image& x, int net, const Vector& grad_added, Gradients& out) {
  const Vector& key = x.level.net[net].tensor[kKey];
  const Context ctx = context(x, net);
  const ContextGradient g = transform_gradient(x.level.net[net], ctx.vector, grad_added, out.net[net]);
  double mean = 0, mean_magnitude = 0;
  for (int c = 0; c < x.C; ++c) {
    mean += g.value[c] * ctx.vector[c];
    mean_magnitude += g.magnitude[c] * std::fabs(ctx.vector[c]);
  }
  Vector key_magnitude(x.C);
  for (int p = 0; p < x.P; ++p) {
    double u = 0, magnitude = mean_magnitude;
    for (int c = 0; c < x.C; ++c) {
      u += g.value[c] * x.at(net, c, p);
      magnitude += g.magnitude[c] * std::fabs(x.at(net, c, p));
    }
    for (int c = 0; c < x.C; ++c) {
      const double F = x.at(net, c, p), q = ctx.q[p];
      key_magnitude[c] += q * magnitude * std::fabs(F);
      add(out.net[net][kKey], c, q * (u - mean) * F, key_magnitude[c]);
      if (net == 0)
        add(out.student, (static_cast<size_t>(x.index) * x.C + c) * x.P + p, q * (g.value[c] + key[c] * (u - mean)),
            q * (g.magnitude[c] + std::fabs(key[c]) * magnitude));
    }
  }
}

void add_image(const Image& x, const std::array<double, kTerms>& factor, Gradients& out) {
  const Vector spatial = spatial_attention(x, 1), channel = channel_attention(x, 1);
  const Vector fg = foreground(x.batch, x.level, x.index), bg = background(fg);
  const Vector r = x.level.has_gc ? shift(x) : Vector(x.C);
  const Vector over_pixels = attention_gradient(spatial_attention(x, 0), spatial);
  const Vector over_channels = attention_gradient(channel_attention(x, 0), channel);
  Vector grad_added(x.C), minus(x.C);
  for (int c = 0; c < x.C; ++c)
    for (int p = 0; p < x.P; ++p) {
      const double d = x.difference(c, p);
      double g = 2 * d * spatial[p] * channel[c] * (factor[kFg] * fg[p] + factor[kBg] * bg[p]);
      g += factor[kAttention] * sign(x.at(0, c, p)) *
           (over_pixels[p] / x.C / x.batch.spatial_temperature + over_channels[c] / x.P / x.batch.channel_temperature);
      if (x.level.has_gc) {
        const double direct = 2 * factor[kGlobal] * (d + r[c]);
        g += direct;
        grad_added[c] += direct;
        minus[c] -= direct;
      }
      add(out.student, (static_cast<size_t>(x.index) * x.C + c) * x.P + p, g, std::fabs(g));
    }
  if (!x.level.has_gc) return;
  add_context(x, 0, grad_added, out);
  add_context(x, 1, minus, out);
}

}  // namespace

Vector foreground(const Batch& batch, const Level& level, int image) {
  Vector fg(level.pixels());
  const float h = batch.sizes[image][0], w = batch.sizes[image][1];
  for (const Box& box : batch.boxes[image]) {
    bool good = box[0] <= box[2] && box[1] <= box[3] && box[2] >= 0 && box[3] >= 0 && box[0] <= w && box[1] <= h;
    for (float v : box) good = good && std::isfinite(v);
    if (!good) continue;
    const float left = std::clamp(box[0], 0.f, w) / w, right = std::clamp(box[2], 0.f, w) / w;
    const float top = std::clamp(box[1], 0.f, h) / h, bottom = std::clamp(box[3], 0.f, h) / h;
    const float x0 = std::floor(left * level.width), x1 = std::ceil(right * level.width);
    const float y0 = std::floor(top * level.height), y1 = std::ceil(bottom * level.height);
    const double weight = 1.f / (y1 + 1.f - y0) / (x1 + 1.f - x0);
    for (int p = 0; p < level.pixels(); ++p) {
      const int x = p % level.width, y = p / level.width;
      if (x0 <= x && x <= x1 && y0 <= y && y <= y1) fg[p] = std::max(fg[p], weight);
    }
  }
  return fg;
}

std::array<double, kTerms> terms(const Batch& batch, const Level& level) {
  std::array<double, kTerms> out{};
  for (int n = 0; n < batch.images; ++n) {
    const std::array<double, kTerms> one = image_terms(Image(batch, level, n));
    for (int k = 0; k < kTerms; ++k) out[k] += level.weights[k] * one[k] / batch.images;
  }
  return out;
}

Gradients gradients(const Batch& batch, const Level& level, const std::array<double, kTerms>& upstream) {
  Gradients out;
  out.student.value.resize(level.feature[0].size());
  for (int net = 0; net < 2; ++net)
    for (int i = 0; i < kNetTensors; ++i) out.net[net][i].value.resize(level.net[net].tensor[i].size());
  std::array<double, kTerms> factor;
  for (int k = 0; k < kTerms; ++k) factor[k] = upstream[k] * level.weights[k] / batch.images;
  for (int n = 0; n < batch.images; ++n) add_image(Image(batch, level, n), factor, out);
  return out;
}

}  // namespace reference

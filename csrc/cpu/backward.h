// Backward over a chunk: with upstream gradients g_fg .. g_gl (weights and 1/N included) and d = s - t,
//
//   ∂L/∂s[c,p] = 2·d·A^C_t[c]·A^S_t[p]·(g_fg fg[p] + g_bg [fg[p]=0]/n_bg)                    feature loss
//              + 2·g_gl·(d + r[c])                                                           global loss, direct
//              + g_at·sign(s)·( h_S[p] + h_C[c] )                                            attention loss
//              + q[p]·g_ctx[c] + Wk_s[c]·q[p]·(u[p] - ū),  u[p] = Σc s[c,p]·g_ctx[c]         global loss, context
//   ∂L/∂Wk_s[c] = Σp q[p]·(u[p] - ū)·s[c,p], and the same of the teacher
//
// where h_S and h_C are what the forward pass saved. Per tile: first u, from memory; then the gradient, from cache.
#pragma once

#include "tile.h"

namespace fgd::cpu::FGD_ISA {

template <class A>
struct BackwardScratch {
  A *u_s, *u_t;         // each [kMaxTilePixels]: u, then q·(u - ū)
  A *feature, *sign;    // each [kMaxTilePixels]: the factor of d·A^C_t, and g_at·h_S
  A* context;           // [kMaxTilePixels]: q of the student, 0 past the end of the tile
  Vec<A>* key_grads;    // [C][2], or as the layout wants it
  BackwardScratch(void* memory, int channels) {
    A* at = static_cast<A*>(memory);
    A** const maps[] = {&u_s, &u_t, &feature, &sign, &context};
    for (A** map : maps) *map = at, at += kMaxTilePixels;
    key_grads = reinterpret_cast<Vec<A>*>(at);
    for (int64_t i = 0; i < int64_t{channels} * 2; ++i) key_grads[i] = Vec<A>{};
  }
};

// A channel's factors.
template <class A>
struct ChannelFactors {
  A attention, direct, shift, sign, context, key;
};

template <class A>
inline ChannelFactors<A> channel_factors(const BackwardChunk<A>& k, int c) {
  return {k.attention[c],
          2 * k.grad_global,
          2 * k.grad_global * k.shift[c],
          k.grad_attention * k.attention_grad[c],
          k.context_grad_s[c],
          k.key_s[c]};
}

// From the saved maps and u to a tile's factors.
template <class A>
inline void finish_pixel_factors(const BackwardChunk<A>& k, const Tile& tile, BackwardScratch<A>& work) {
  constexpr int W = kWidth<A>;
  const A fg = 2 * k.grad_fg, bg = -2 * k.grad_bg;
  for (int j = 0; j < tile.pixels; j += W) {
    const int left = tile.pixels - j, p = tile.first + j;
    const Vec<A> focal = load_up_to<A>(k.maps[kMapFocal] + p, left);
    const Vec<A> q_s = load_up_to<A>(k.maps[kMapContextS] + p, left);
    const Vec<A> q_t = load_up_to<A>(k.maps[kMapContextT] + p, left);
    store<A>(work.feature + j, focal * select<A>((Bits<A>)(focal > 0), broadcast(fg), broadcast(bg)));
    store<A>(work.sign + j, k.grad_attention * load_up_to<A>(k.maps[kMapAttention] + p, left));
    store<A>(work.context + j, q_s);
    store<A>(work.u_s + j, q_s * (load<A>(work.u_s + j) - k.mean_s));
    store<A>(work.u_t + j, q_t * (load<A>(work.u_t + j) - k.mean_t));
  }
}

// ---- NCHW ----------------------------------------------------------------------------------------------------------

// u of the student and the teacher, K channels from c on.
template <int K, class A, class S, class T>
inline void add_projections(const BackwardChunk<A>& k, const Tile& tile, int c, BackwardScratch<A>& work) {
  constexpr int W = kWidth<A>;
  const S* s[K];
  const T* t[K];
  for (int i = 0; i < K; ++i) {
    s[i] = row<S>(k.student, c + i, tile.first);
    t[i] = row<T>(k.teacher, c + i, tile.first);
  }
  const int64_t ahead_s = K * k.student.channel, ahead_t = K * k.teacher.channel;
  const bool more = c + 2 * K <= k.channels;
  for (int j = 0; j < tile.pixels; j += W) {
    Vec<A> us = load<A>(work.u_s + j), ut = load<A>(work.u_t + j);
    for (int i = 0; i < K; ++i) {
      if (more && starts_line<S>(j)) prefetch(s[i] + j + ahead_s);
      if (more && starts_line<T>(j)) prefetch(t[i] + j + ahead_t);
      us += k.context_grad_s[c + i] * load_up_to<A>(s[i] + j, tile.pixels - j);
      ut += k.context_grad_t[c + i] * load_up_to<A>(t[i] + j, tile.pixels - j);
    }
    store<A>(work.u_s + j, us);
    store<A>(work.u_t + j, ut);
  }
}

template <class A>
inline Vec<A> gradient(Vec<A> s, Vec<A> t, const ChannelFactors<A>& f, Vec<A> feature, Vec<A> sign, Vec<A> context,
                       Vec<A> u) {
  const Vec<A> d = s - t;
  Vec<A> g = d * (f.attention * feature + f.direct) + f.shift;
  g += sign_times<A>(s, sign + f.sign);
  g += f.context * context;
  return g + f.key * u;
}

// The gradient and the key gradients of K channels from c on.
template <int K, bool Stream, class A, class S, class T>
inline void write_rows(const BackwardChunk<A>& k, const Tile& tile, int c, BackwardScratch<A>& work) {
  constexpr int W = kWidth<A>;
  const S* s[K];
  const T* t[K];
  S* g[K];
  ChannelFactors<A> f[K];
  Vec<A> key_s[K], key_t[K];
  for (int i = 0; i < K; ++i) {
    s[i] = row<S>(k.student, c + i, tile.first);
    t[i] = row<T>(k.teacher, c + i, tile.first);
    g[i] = static_cast<S*>(k.grad) + (c + i) * k.grad_channel + tile.first * k.grad_pixel;
    f[i] = channel_factors(k, c + i);
    key_s[i] = work.key_grads[2 * (c + i)];
    key_t[i] = work.key_grads[2 * (c + i) + 1];
  }
  for (int j = 0; j < tile.pixels; j += W) {
    const int left = tile.pixels - j;
    const Vec<A> feature = load<A>(work.feature + j), sign = load<A>(work.sign + j);
    const Vec<A> context = load<A>(work.context + j), us = load<A>(work.u_s + j), ut = load<A>(work.u_t + j);
    for (int i = 0; i < K; ++i) {
      if (tile.next && starts_line<S>(j)) prefetch_far(s[i] + j + tile.pixels);
      if (tile.next && starts_line<T>(j)) prefetch_far(t[i] + j + tile.pixels);
      const Vec<A> sv = load_up_to<A>(s[i] + j, left), tv = load_up_to<A>(t[i] + j, left);
      const Vec<A> value = gradient<A>(sv, tv, f[i], feature, sign, context, us);
      key_s[i] += us * sv;
      key_t[i] += ut * tv;
      if (Stream && left >= W)
        stream<A>(g[i] + j, value);
      else
        store_up_to<A>(g[i] + j, value, left);
    }
  }
  for (int i = 0; i < K; ++i) {
    work.key_grads[2 * (c + i)] = key_s[i];
    work.key_grads[2 * (c + i) + 1] = key_t[i];
  }
}

template <class A, class S, class T>
void backward_nchw(const BackwardChunk<A>& k, void* scratch) {
  BackwardScratch<A> work(scratch, k.channels);
  const int step = tile_pixels(k.channels, sizeof(S) + sizeof(T));
  for (int first = 0; first < k.pixels; first += step) {
    const Tile tile = tile_at(first, step, k.pixels);
    for (int j = 0; j < tile.pixels; j += kWidth<A>) {
      store<A>(work.u_s + j, Vec<A>{});
      store<A>(work.u_t + j, Vec<A>{});
    }
    int c = 0;
    for (; c + 4 <= k.channels; c += 4) add_projections<4, A, S, T>(k, tile, c, work);
    for (; c < k.channels; ++c) add_projections<1, A, S, T>(k, tile, c, work);
    finish_pixel_factors<A>(k, tile, work);
    for (c = 0; c < k.channels; ++c) {
      const S* g = static_cast<const S*>(k.grad) + c * k.grad_channel + tile.first * k.grad_pixel;
      if (k.stream && reinterpret_cast<uintptr_t>(g) % FGD_VECTOR_BYTES == 0)
        write_rows<1, true, A, S, T>(k, tile, c, work);
      else
        write_rows<1, false, A, S, T>(k, tile, c, work);
    }
  }
  if (!k.key_grad_s) return;
  for (int c = 0; c < k.channels; ++c) {
    k.key_grad_s[c] = sum_lanes<A>(work.key_grads[2 * c]);
    k.key_grad_t[c] = sum_lanes<A>(work.key_grads[2 * c + 1]);
  }
}

// ---- channels_last -------------------------------------------------------------------------------------------------

// u of the student and the teacher for four pixels (indices of the chunk): eight vectors, merged together.
template <class A, class S, class T>
inline void project_four_pixels(const BackwardChunk<A>& k, const int* pixel, A* out) {
  constexpr int W = kWidth<A>;
  const S* s[4];
  const T* t[4];
  for (int i = 0; i < 4; ++i) {
    s[i] = row<S>(k.student, 0, pixel[i]);
    t[i] = row<T>(k.teacher, 0, pixel[i]);
  }
  Vec<A> sum[8] = {};
  for (int c = 0; c < k.channels; c += W) {
    const int left = k.channels - c;
    const Vec<A> gs = load_up_to<A>(k.context_grad_s + c, left), gt = load_up_to<A>(k.context_grad_t + c, left);
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += gs * load_up_to<A>(s[i] + c, left);
      sum[2 * i + 1] += gt * load_up_to<A>(t[i] + c, left);
    }
  }
  sum_lanes_of_8<A>(sum, out);
}

template <class A, class S, class T>
inline void write_channel_vector(const BackwardChunk<A>& k, const Tile& tile, int c, BackwardScratch<A>& work) {
  constexpr int W = kWidth<A>;
  const int left = k.channels - c;
  const S* s = row<S>(k.student, c, tile.first);
  const T* t = row<T>(k.teacher, c, tile.first);
  S* g = static_cast<S*>(k.grad) + c * k.grad_channel + tile.first * k.grad_pixel;
  const Vec<A> attention = load_up_to<A>(k.attention + c, left), key = load_up_to<A>(k.key_s + c, left);
  const Vec<A> shift = 2 * k.grad_global * load_up_to<A>(k.shift + c, left);
  const Vec<A> sign = k.grad_attention * load_up_to<A>(k.attention_grad + c, left);
  const Vec<A> context = load_up_to<A>(k.context_grad_s + c, left);
  const A direct = 2 * k.grad_global;
  Vec<A>* sums = work.key_grads + c / W * 2;
  Vec<A> key_s = sums[0], key_t = sums[1];
  for (int j = 0; j < tile.pixels; ++j, s += k.student.pixel, t += k.teacher.pixel, g += k.grad_pixel) {
    const Vec<A> sv = load_up_to<A>(s, left), tv = load_up_to<A>(t, left), d = sv - tv;
    Vec<A> value = d * (attention * work.feature[j] + direct) + shift;
    value += sign_times<A>(sv, sign + work.sign[j]);
    value += context * work.context[j] + key * work.u_s[j];
    key_s += work.u_s[j] * sv;
    key_t += work.u_t[j] * tv;
    store_up_to<A>(g, value, left);
  }
  sums[0] = key_s;
  sums[1] = key_t;
}

template <class A, class S, class T>
void backward_nhwc(const BackwardChunk<A>& k, void* scratch) {
  constexpr int W = kWidth<A>, kStep = 64;
  BackwardScratch<A> work(scratch, k.channels);
  for (int first = 0; first < k.pixels; first += kStep) {
    const Tile tile = tile_at(first, kStep, k.pixels);
    for (int j = 0; j < tile.pixels; j += 4) {
      int pixel[4];
      A u[8];
      for (int i = 0; i < 4; ++i) pixel[i] = first + (j + i < tile.pixels ? j + i : tile.pixels - 1);
      project_four_pixels<A, S, T>(k, pixel, u);
      for (int i = 0; i < 4; ++i) work.u_s[j + i] = u[2 * i], work.u_t[j + i] = u[2 * i + 1];
    }
    finish_pixel_factors<A>(k, tile, work);
    for (int c = 0; c < k.channels; c += W) write_channel_vector<A, S, T>(k, tile, c, work);
  }
  if (!k.key_grad_s) return;
  for (int c = 0; c < k.channels; c += W) {
    store_up_to<A>(k.key_grad_s + c, work.key_grads[c / W * 2], k.channels - c);
    store_up_to<A>(k.key_grad_t + c, work.key_grads[c / W * 2 + 1], k.channels - c);
  }
}

}  // namespace fgd::cpu::FGD_ISA

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
  A *u_s, *u_t;       // each [kMaxTilePixels]: u, then q·(u - ū)
  A *feature, *sign;  // each [kMaxTilePixels]: the factor of d·A^C_t, and g_at·h_S
  A* context;         // [kMaxTilePixels]: q of the student, 0 past the end of the tile
  Vec<A>* key_grads;  // [C][2], or as the layout wants it
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
  return {
      k.attention[c],      2 * k.grad_global, 2 * k.grad_global * k.shift[c], k.grad_attention * k.attention_grad[c],
      k.context_grad_s[c], k.key_s[c]};
}

// From the saved maps and u to a tile's factors.
template <class A>
inline void finish_pixel_factors(const BackwardChunk<A>& k, const Tile& tile, BackwardScratch<A>& work) {
  const A fg = 2 * k.grad_fg, bg = -2 * k.grad_bg;
  for_vectors<A>(tile.pixels, [&](int j, auto lanes) {
    const int p = tile.first + j;
    const Vec<A> focal = lanes.load(k.maps[kMapFocal] + p);
    const Vec<A> q_s = lanes.load(k.maps[kMapContextS] + p), q_t = lanes.load(k.maps[kMapContextT] + p);
    store<A>(work.feature + j, focal * select<A>((Bits<A>)(focal > 0), broadcast(fg), broadcast(bg)));
    store<A>(work.sign + j, k.grad_attention * lanes.load(k.maps[kMapAttention] + p));
    store<A>(work.context + j, q_s);
    store<A>(work.u_s + j, q_s * (load<A>(work.u_s + j) - k.mean_s));
    store<A>(work.u_t + j, q_t * (load<A>(work.u_t + j) - k.mean_t));
  });
}

// ---- NCHW ----------------------------------------------------------------------------------------------------------

// u of the student and the teacher, K channels from c on.
template <int K, class A, class S, class T>
inline void add_projections(const BackwardChunk<A>& k, const Tile& tile, int c, A* const* u) {
  const S* s[K];
  const T* t[K];
  A grad_s[K], grad_t[K];
  for (int i = 0; i < K; ++i) {
    s[i] = row<S>(k.student, c + i, tile.first);
    t[i] = row<T>(k.teacher, c + i, tile.first);
    grad_s[i] = k.context_grad_s[c + i];
    grad_t[i] = k.context_grad_t[c + i];
  }
  const bool more = c + 2 * K <= k.channels;
  const int64_t ahead_s = more ? K * k.student.channel : 0, ahead_t = more ? K * k.teacher.channel : 0;
  for_vectors<A>(tile.pixels, [&](int j, auto lanes) {
    Vec<A> us{}, ut{};
    FGD_UNROLL
    for (int i = 0; i < K; ++i) {
      prefetch(s[i] + j + ahead_s);
      prefetch(t[i] + j + ahead_t);
      us += grad_s[i] * lanes.load(s[i] + j);
      ut += grad_t[i] * lanes.load(t[i] + j);
    }
    add_to<A>(u[0] + j, us);
    add_to<A>(u[1] + j, ut);
  });
}

// A vector of pixels' factors.
template <class A>
struct PixelFactors {
  Vec<A> feature, sign, context, u_s, u_t;
};

template <class A, class Channel>
FGD_INLINE Vec<A> gradient(Vec<A> s, Vec<A> t, const Channel& c, const PixelFactors<A>& p) {
  const Vec<A> d = s - t;
  Vec<A> g = d * (c.attention * p.feature + c.direct) + c.shift;
  g += sign_times<A>(s, p.sign + c.sign);
  g += c.context * p.context;
  return g + c.key * p.u_s;
}

// The gradient and the key gradients of K channels from c on.
template <int K, bool Stream, class A, class S, class T>
inline void write_rows(const BackwardChunk<A>& k, const Tile& tile, int c, BackwardScratch<A>& work) {
  const S* s[K];
  const T* t[K];
  S* g[K];
  ChannelFactors<A> f[K];
  Vec<A> key_s[K], key_t[K];
  FGD_UNROLL
  for (int i = 0; i < K; ++i) {
    s[i] = row<S>(k.student, c + i, tile.first);
    t[i] = row<T>(k.teacher, c + i, tile.first);
    g[i] = static_cast<S*>(k.grad) + (c + i) * k.grad_channel + tile.first * k.grad_pixel;
    f[i] = channel_factors(k, c + i);
    key_s[i] = work.key_grads[2 * (c + i)];
    key_t[i] = work.key_grads[2 * (c + i) + 1];
  }
  const int ahead = tile.next ? tile.pixels : 0;
  for_vectors<A>(tile.pixels, [&](int j, auto lanes) {
    const PixelFactors<A> p{load<A>(work.feature + j), load<A>(work.sign + j), load<A>(work.context + j),
                            load<A>(work.u_s + j), load<A>(work.u_t + j)};
    FGD_UNROLL
    for (int i = 0; i < K; ++i) {
      prefetch_far(s[i] + j + ahead);
      prefetch_far(t[i] + j + ahead);
      const Vec<A> sv = lanes.load(s[i] + j), tv = lanes.load(t[i] + j);
      key_s[i] += p.u_s * sv;
      key_t[i] += p.u_t * tv;
      const Vec<A> value = gradient<A>(sv, tv, f[i], p);
      if constexpr (Stream && lanes.kAll)
        stream<A>(g[i] + j, value);
      else
        lanes.store(g[i] + j, value);
    }
  });
  FGD_UNROLL
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
    A* const total[] = {work.u_s, work.u_t};
    A* const part[] = {work.feature, work.sign};  // not needed yet
    sum_channel_blocks<A>(k.channels, tile.pixels, 2, total, part, [&](int c, int end, A* const* u) {
      for (; c + 4 <= end; c += 4) add_projections<4, A, S, T>(k, tile, c, u);
      for (; c < end; ++c) add_projections<1, A, S, T>(k, tile, c, u);
    });
    finish_pixel_factors<A>(k, tile, work);
    for (int c = 0; c < k.channels; ++c) {
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
  const S* s[4];
  const T* t[4];
  for (int i = 0; i < 4; ++i) {
    s[i] = row<S>(k.student, 0, pixel[i]);
    t[i] = row<T>(k.teacher, 0, pixel[i]);
  }
  Vec<A> total[8];
  sum_channel_vectors<A, 8>(k.channels, total, [&](int c, auto lanes, Vec<A>* sum) {
    const Vec<A> gs = lanes.load(k.context_grad_s + c), gt = lanes.load(k.context_grad_t + c);
    FGD_UNROLL
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += gs * lanes.load(s[i] + c);
      sum[2 * i + 1] += gt * lanes.load(t[i] + c);
    }
  });
  sum_lanes_of_8<A>(total, out);
}

// A vector of channels' factors.
template <class A>
struct ChannelVector {
  Vec<A> attention, shift, sign, context, key;
  A direct;
};

template <class A, class S, class T, class Lanes>
FGD_INLINE void write_channel_vector(const BackwardChunk<A>& k, const Tile& tile, int c, Lanes lanes,
                                     BackwardScratch<A>& work, Vec<A>* sums) {
  const S* s = row<S>(k.student, c, tile.first);
  const T* t = row<T>(k.teacher, c, tile.first);
  S* g = static_cast<S*>(k.grad) + c * k.grad_channel + tile.first * k.grad_pixel;
  const ChannelVector<A> f{lanes.load(k.attention + c),
                           2 * k.grad_global * lanes.load(k.shift + c),
                           k.grad_attention * lanes.load(k.attention_grad + c),
                           lanes.load(k.context_grad_s + c),
                           lanes.load(k.key_s + c),
                           2 * k.grad_global};
  Vec<A> key_s = sums[0], key_t = sums[1];
  for (int j = 0; j < tile.pixels; ++j, s += k.student.pixel, t += k.teacher.pixel, g += k.grad_pixel) {
    const PixelFactors<A> p{broadcast(work.feature[j]), broadcast(work.sign[j]), broadcast(work.context[j]),
                            broadcast(work.u_s[j]), broadcast(work.u_t[j])};
    const Vec<A> sv = lanes.load(s), tv = lanes.load(t);
    key_s += p.u_s * sv;
    key_t += p.u_t * tv;
    lanes.store(g, gradient<A>(sv, tv, f, p));
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
    for_vectors<A>(k.channels, [&](int c, auto lanes) {
      write_channel_vector<A, S, T>(k, tile, c, lanes, work, work.key_grads + c / W * 2);
    });
  }
  if (!k.key_grad_s) return;
  for_vectors<A>(k.channels, [&](int c, auto lanes) {
    lanes.store(k.key_grad_s + c, work.key_grads[c / W * 2]);
    lanes.store(k.key_grad_t + c, work.key_grads[c / W * 2 + 1]);
  });
}

}  // namespace fgd::cpu::FGD_ISA

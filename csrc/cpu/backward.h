// Backward over a chunk: with upstream gradients g_fg .. g_gl (weights and 1/N included) and d = s - t,
//
//   ∂L/∂s[c,p] = 2·d·A^C_t[c]·A^S_t[p]·(g_fg fg[p] + g_bg [fg[p]=0]/n_bg)                    feature loss
//              + 2·g_gl·(d + r[c])                                                           global loss, direct
//              + g_at·sign(s)·( h_S[p] + h_C[c] )                                            attention loss
//              + q[p]·g_ctx[c] + Wk_s[c]·q[p]·(u[p] - ū),  u[p] = Σc s[c,p]·g_ctx[c]         global loss, context
//   ∂L/∂Wk_s[c] = Σp f[p]·(s[c,p] - ctx[c]),  f = q·(u - ū),  and the same of the teacher
//
// where h_S and h_C are what the forward pass saved. Per tile: first u, from memory; then the gradient, from cache.
//
// Where few pixels hold all the weight, their s is ctx, their u is ū, and what is left of u - ū is rounding. Two things
// keep that out of ∂L/∂Wk: ū is ctx projected by the very operations that project a pixel, so that a pixel which equals
// ctx gets f = 0; and ctx is subtracted from s, in the sum: Σ f·s - ctx·Σ f, of the very same f. As Σ f = 0, a sum of f
// that is something else is the rounding of the one pixel with all the weight: ∂L/∂s is written again there, without
// it.
#pragma once

#include "tile.h"

namespace fgd::cpu::FGD_ISA {

template <class A>
struct BackwardScratch {
  A *u_s, *u_t;             // each [kMaxTilePixels]: u, then q·(u - ū)
  A *feature, *sign;        // each [kMaxTilePixels]: the factor of d·A^C_t, and g_at·h_S
  A* context;               // [kMaxTilePixels]: q of the student, 0 past the end of the tile
  Vec<A>* key_grads;        // [C][2], or as the layout wants it
  A mean_s, mean_t;         // ū
  Vec<A> sum_s{}, sum_t{};  // of f = q·(u - ū)
  BackwardScratch(void* memory, int channels) {
    A* at = static_cast<A*>(memory);
    A** const maps[] = {&u_s, &u_t, &feature, &sign, &context};
    for (A** map : maps) *map = at, at += kMaxTilePixels;
    key_grads = reinterpret_cast<Vec<A>*>(at);
    for (int64_t i = 0; i < int64_t{channels} * 2; ++i) key_grads[i] = Vec<A>{};
  }
};

// A channel's factors. sign(s) = 0 must not hide an attention that is not finite: such a factor is in `shift`, too.
template <class A>
struct ChannelFactors {
  A attention, direct, shift, sign, context, key;
};

template <class A>
inline ChannelFactors<A> channel_factors(const BackwardChunk<A>& k, int c) {
  const A sign = k.grad_attention * k.attention_grad[c];
  return {k.attention[c], 2 * k.grad_global,   2 * k.grad_global * k.shift[c] + 0 * sign,
          sign,           k.context_grad_s[c], k.key_s[c]};
}

// From the saved maps and u to a tile's factors. As for channels, a sign's factor that is not finite is in `context`.
template <class A>
inline void finish_pixel_factors(const BackwardChunk<A>& k, const Tile& tile, BackwardScratch<A>& work) {
  const A fg = 2 * k.grad_fg, bg = -2 * k.grad_bg;
  for_vectors<A>(tile.pixels, [&](int j, auto lanes) {
    const int p = tile.first + j;
    const Vec<A> focal = lanes.load(k.maps[kMapFocal] + p);
    const Vec<A> q_s = lanes.load(k.maps[kMapContextS] + p), q_t = lanes.load(k.maps[kMapContextT] + p);
    store<A>(work.feature + j, focal * select<A>((Bits<A>)(focal > 0), broadcast(fg), broadcast(bg)));
    const Vec<A> sign = k.grad_attention * lanes.load(k.maps[kMapAttention] + p);
    const Vec<A> f_s = q_s * (lanes.load(work.u_s + j) - work.mean_s) - k.excess;
    const Vec<A> f_t = q_t * (lanes.load(work.u_t + j) - work.mean_t);
    store<A>(work.sign + j, sign);
    store<A>(work.context + j, q_s + 0 * sign);
    store<A>(work.u_s + j, f_s);
    store<A>(work.u_t + j, f_t);
    work.sum_s += f_s;
    work.sum_t += f_t;
  });
}

// The context vectors as an image of one pixel, whose projections are ū.
template <class A>
inline BackwardChunk<A> contexts_as_features(BackwardChunk<A> k) {
  k.student = {k.context_s, 1, 1};
  k.teacher = {k.context_t, 1, 1};
  return k;
}

// Behind a chunk's key gradients: the sums of their factors.
template <class A>
inline void write_factor_sums(const BackwardChunk<A>& k, const BackwardScratch<A>& work) {
  k.key_grad_s[k.channels] = sum_lanes<A>(work.sum_s);
  k.key_grad_t[k.channels] = sum_lanes<A>(work.sum_t);
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
      us = multiply_add<A>(broadcast(grad_s[i]), lanes.load(s[i] + j), us);
      ut = multiply_add<A>(broadcast(grad_t[i]), lanes.load(t[i] + j), ut);
    }
    add_to<A>(u[0] + j, us);
    add_to<A>(u[1] + j, ut);
  });
}

// u of a tile's pixels.
template <class A, class S, class T>
inline void project_rows(const BackwardChunk<A>& k, const Tile& tile, BackwardScratch<A>& work) {
  A* const total[] = {work.u_s, work.u_t};
  A* const part[] = {work.feature, work.sign};  // not needed yet
  sum_channel_blocks<A>(k.channels, tile.pixels, 2, total, part, [&](int c, int end, A* const* u) {
    for (; c + 4 <= end; c += 4) add_projections<4, A, S, T>(k, tile, c, u);
    for (; c < end; ++c) add_projections<1, A, S, T>(k, tile, c, u);
  });
}

// A vector of pixels' factors.
template <class A>
struct PixelFactors {
  Vec<A> feature, sign, context, u_s, u_t;
};

template <class A>
FGD_INLINE Vec<A> all(A x) {
  return broadcast(x);
}
template <class A>
FGD_INLINE Vec<A> all(Vec<A> x) {
  return x;
}

template <class A, class Channel>
FGD_INLINE Vec<A> gradient(Vec<A> s, Vec<A> t, const Channel& c, const PixelFactors<A>& p) {
  const Vec<A> focal = multiply_add<A>(all<A>(c.attention), p.feature, all<A>(c.direct));
  Vec<A> g = multiply_add<A>(s - t, focal, all<A>(c.shift));
  g += sign_times<A>(s, p.sign + c.sign);
  g = multiply_add<A>(all<A>(c.context), p.context, g);
  return multiply_add<A>(all<A>(c.key), p.u_s, g);
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
      key_s[i] = multiply_add<A>(p.u_s, sv, key_s[i]);
      key_t[i] = multiply_add<A>(p.u_t, tv, key_t[i]);
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
  project_rows<A, A, A>(contexts_as_features(k), Tile{0, 1, false}, work);
  work.mean_s = work.u_s[0];
  work.mean_t = work.u_t[0];
  for (int first = 0; first < k.pixels; first += step) {
    const Tile tile = tile_at(first, step, k.pixels);
    project_rows<A, S, T>(k, tile, work);
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
  write_factor_sums(k, work);
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
      sum[2 * i] = multiply_add<A>(gs, lanes.load(s[i] + c), sum[2 * i]);
      sum[2 * i + 1] = multiply_add<A>(gt, lanes.load(t[i] + c), sum[2 * i + 1]);
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
  const Vec<A> sign = k.grad_attention * lanes.load(k.attention_grad + c);
  const ChannelVector<A> f{lanes.load(k.attention + c),
                           2 * k.grad_global * lanes.load(k.shift + c) + 0 * sign,
                           sign,
                           lanes.load(k.context_grad_s + c),
                           lanes.load(k.key_s + c),
                           2 * k.grad_global};
  Vec<A> key_s = sums[0], key_t = sums[1];
  for (int j = 0; j < tile.pixels; ++j, s += k.student.pixel, t += k.teacher.pixel, g += k.grad_pixel) {
    const PixelFactors<A> p{broadcast(work.feature[j]), broadcast(work.sign[j]), broadcast(work.context[j]),
                            broadcast(work.u_s[j]), broadcast(work.u_t[j])};
    const Vec<A> sv = lanes.load(s), tv = lanes.load(t);
    key_s = multiply_add<A>(p.u_s, sv, key_s);
    key_t = multiply_add<A>(p.u_t, tv, key_t);
    lanes.store(g, gradient<A>(sv, tv, f, p));
  }
  sums[0] = key_s;
  sums[1] = key_t;
}

template <class A, class S, class T>
void backward_nhwc(const BackwardChunk<A>& k, void* scratch) {
  constexpr int W = kWidth<A>, kStep = 64;
  BackwardScratch<A> work(scratch, k.channels);
  const int same_pixel[4] = {};
  A means[8];
  project_four_pixels<A, A, A>(contexts_as_features(k), same_pixel, means);
  work.mean_s = means[0];
  work.mean_t = means[1];
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
  write_factor_sums(k, work);
}

}  // namespace fgd::cpu::FGD_ISA

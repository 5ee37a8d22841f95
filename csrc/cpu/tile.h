// What both layouts share: a tile of pixels, the step from channel sums to softmax weights, and scratch memory.
#pragma once

#include "chunk.h"
#include "simd.h"

namespace fgd::cpu::FGD_ISA {

constexpr int kTileBytes = 512 * 1024;  // of features, both: a tile and its successor lie in a 2 MB second-level cache

struct Tile {
  int first, pixels;
  bool next;  // another whole tile follows in this chunk
};

inline int tile_pixels(int channels, int bytes_per_pair) {
  int64_t pixels = kTileBytes / (int64_t{channels} * bytes_per_pair) / kMinTilePixels * kMinTilePixels;
  if (pixels > kMaxTilePixels) pixels = kMaxTilePixels;
  return pixels < kMinTilePixels ? kMinTilePixels : static_cast<int>(pixels);
}

inline Tile tile_at(int first, int step, int end) {
  const int left = end - first;
  return {first, left < step ? left : step, left >= 2 * step};
}

template <class T>
inline const T* row(const Features& f, int c, int p) {
  return static_cast<const T*>(f.data) + c * f.channel + p * f.pixel;
}

// Whether element j of a row begins a stretch of 64 bytes (counted from the row's start): once a cache line.
template <class T>
inline bool starts_line(int j) {
  return j * sizeof(T) % 64 == 0;
}

template <class A, class T>
inline Vec<A> load_up_to(const T* p, int n) {
  return __builtin_expect(n >= kWidth<A>, 1) ? load<A>(p) : load_first<A>(p, n);
}

template <class A, class T>
inline void store_up_to(T* p, Vec<A> v, int n) {
  if (__builtin_expect(n >= kWidth<A>, 1))
    store<A>(p, v);
  else
    store_first<A>(p, v, n);
}

// Running maxima and sums of the four softmaxes, and each tile's maxima.
template <class A>
struct SoftmaxState {
  A maximum[kSoftmaxes], tile_maximum[kMaxTiles][kSoftmaxes];
  Vec<A> sum[kSoftmaxes];
  SoftmaxState() {
    for (int q = 0; q < kSoftmaxes; ++q) {
      maximum[q] = static_cast<A>(-__builtin_inf());
      sum[q] = Vec<A>{};
    }
  }
};

// A tile's per-pixel factors of the channel sums, and what the sums so far must be multiplied with.
template <class A>
struct PixelWeights {
  const A *fg, *bg, *context_s, *context_t;
  A rescale[kSoftmaxes];
};

template <class A>
struct ForwardScratch {
  A* logits[kSoftmaxes];  // each [kMaxTilePixels]
  A* weights[4];          // each [kMaxTilePixels]
  Vec<A>* sums;           // [C rounded up to the width][kSums], or as the layout wants it
  ForwardScratch(void* memory, int channels) {
    A* at = static_cast<A*>(memory);
    for (A*& map : logits) map = at, at += kMaxTilePixels;
    for (A*& map : weights) map = at, at += kMaxTilePixels;
    sums = reinterpret_cast<Vec<A>*>(at);
    for (int64_t i = 0; i < int64_t{channels} * kSums; ++i) sums[i] = Vec<A>{};
  }
  void clear_logits(int pixels) {
    for (A* map : logits)
      for (int j = 0; j < pixels; j += kWidth<A>) store<A>(map + j, Vec<A>{});
  }
};

template <class A>
inline void load_sums(const Vec<A>* from, const A* rescale, Vec<A>* sum) {
  sum[kSumFg] = from[kSumFg] * rescale[kTeacher];
  sum[kSumBg] = from[kSumBg] * rescale[kTeacher];
  for (int q = kSumD; q < kSumContextS; ++q) sum[q] = from[q];
  sum[kSumContextS] = from[kSumContextS] * rescale[kContextS];
  sum[kSumContextT] = from[kSumContextT] * rescale[kContextT];
}

// One vector of (s, t) pairs into the eight sums.
template <class A>
inline void accumulate(Vec<A> s, Vec<A> t, Vec<A> fg, Vec<A> bg, Vec<A> es, Vec<A> et, Vec<A>* sum) {
  const Vec<A> d = s - t, square = d * d;
  sum[kSumFg] += square * fg;
  sum[kSumBg] += square * bg;
  sum[kSumD] += d;
  sum[kSumD2] += square;
  sum[kSumAbsS] += absolute<A>(s);
  sum[kSumAbsT] += absolute<A>(t);
  sum[kSumContextS] += es * s;
  sum[kSumContextT] += et * t;
}

// Step 2 of the forward pass: logits become exponentials against the running maxima, and these the tile's weights.
template <class A>
inline PixelWeights<A> finish_pixels(ForwardChunk<A>& k, const Tile& tile, int index, ForwardScratch<A>& work,
                                     SoftmaxState<A>& state) {
  constexpr int W = kWidth<A>;
  const A minus_infinity = static_cast<A>(-__builtin_inf());
  PixelWeights<A> out{work.weights[0], work.weights[1], work.weights[2], work.weights[3], {}};
  for (int q = 0; q < kSoftmaxes; ++q) {
    A* logits = work.logits[q];
    for (int j = tile.pixels; j % W != 0; ++j) logits[j] = minus_infinity;
    Vec<A> best = broadcast(state.maximum[q]);
    const A factor = q == kTeacher || q == kStudent ? k.inverse_ct : 1;
    for (int j = 0; j < tile.pixels; j += W) {
      Vec<A> z = load<A>(logits + j);
      if (q == kTeacher || q == kStudent) {
        const Bits<A> padding = z == minus_infinity;  // -inf·0 would be NaN
        z = select<A>(padding, z, z * factor);
        store<A>(logits + j, z);
      }
      best = larger<A>(z, best);
    }
    const A before = state.maximum[q], now = largest_lane<A>(best);
    out.rescale[q] = before == now ? 1 : exponential_of<A>(before - now);
    state.maximum[q] = state.tile_maximum[index][q] = now;
    state.sum[q] = state.sum[q] * out.rescale[q];
    for (int j = 0; j < tile.pixels; j += W) {
      Vec<A> e = exponential(load<A>(logits + j) - now);
      if (tile.pixels - j < W)
        for (int lane = tile.pixels - j; lane < W; ++lane) e[lane] = 0;
      state.sum[q] += e;
      store<A>(logits + j, e);
      store_up_to<A>(k.exponentials[q] + tile.first + j, e, tile.pixels - j);
    }
  }
  for (int j = 0; j < tile.pixels; j += W) {
    const Vec<A> weight = load<A>(k.mask + tile.first + j);
    const Vec<A> e = load<A>(work.logits[kTeacher] + j);
    const Bits<A> outside = weight == 0;
    store<A>(work.weights[0] + j, e * weight);
    store<A>(work.weights[1] + j, (Vec<A>)((Bits<A>)e & outside));
  }
  out.context_s = work.logits[kContextS];
  out.context_t = work.logits[kContextT];
  return out;
}

// The chunk's maxima and normalisers; all exponentials brought to the chunk's maximum.
template <class A>
inline void finish_chunk(ForwardChunk<A>& k, int step, int tiles, const SoftmaxState<A>& state) {
  for (int q = 0; q < kSoftmaxes; ++q) {
    k.maximum[q] = state.maximum[q];
    k.normaliser[q] = sum_lanes<A>(state.sum[q]);
    for (int i = 0; i + 1 < tiles; ++i) {
      if (state.tile_maximum[i][q] == state.maximum[q]) continue;
      const A factor = exponential_of<A>(state.tile_maximum[i][q] - state.maximum[q]);
      for (int p = i * step; p < (i + 1) * step; ++p) k.exponentials[q][p] *= factor;
    }
  }
}

}  // namespace fgd::cpu::FGD_ISA

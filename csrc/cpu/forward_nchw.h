// Forward over a chunk whose pixels are dense (NCHW). Per tile of pixels, with all channels:
//
//   1. per pixel    Σc |t|, Σc |s|, Σc Wk_s·s, Σc Wk_t·t                     the tile comes from memory, once
//   2. per pixel    exp of the four logits against running maxima, mask weights
//   3. per channel  Qf, Qb, D1, D2, Σ|s|, Σ|t|, Σ e·s, Σ e·t                 the tile is in cache; the next one is on
//   its way
#pragma once

#include "tile.h"

namespace fgd::cpu::FGD_ISA {

// Step 1 for K channels from c on.
template <int K, class A, class S, class T>
inline void add_pixel_sums(const ForwardChunk<A>& k, const Tile& tile, int c, A* const* logits) {
  const S* s[K];
  const T* t[K];
  A key_s[K], key_t[K];
  for (int i = 0; i < K; ++i) {
    s[i] = row<S>(k.student, c + i, tile.first);
    t[i] = row<T>(k.teacher, c + i, tile.first);
    key_s[i] = k.key_s[c + i];
    key_t[i] = k.key_t[c + i];
  }
  // The rows of the next step, or these again where there are none: a prefetch of what is there costs little.
  const bool more = c + 2 * K <= k.channels;
  const int64_t ahead_s = more ? K * k.student.channel : 0, ahead_t = more ? K * k.teacher.channel : 0;
  for_vectors<A>(tile.pixels, [&](int j, auto lanes) {
    Vec<A> at{}, as{}, xs{}, xt{};  // of these K channels first: a shorter chain of roundings
    FGD_UNROLL
    for (int i = 0; i < K; ++i) {
      prefetch(s[i] + j + ahead_s);
      prefetch(t[i] + j + ahead_t);
      const Vec<A> sv = lanes.load(s[i] + j), tv = lanes.load(t[i] + j);
      at += absolute<A>(tv);
      as += absolute<A>(sv);
      xs = multiply_add<A>(broadcast(key_s[i]), sv, xs);
      xt = multiply_add<A>(broadcast(key_t[i]), tv, xt);
    }
    add_to<A>(logits[kTeacher] + j, at);
    add_to<A>(logits[kStudent] + j, as);
    add_to<A>(logits[kContextS] + j, xs);
    add_to<A>(logits[kContextT] + j, xt);
  });
}

// Pixels that are summed by themselves before they are added to a tile's or a chunk's sums: one by one, a lane would
// lose a digit where features have 16 bits. As many vectors as a tile of 256 float32 channels has on AVX2.
template <class A>
constexpr int kPixelBlock = 32 * kWidth<A>;
// And differences again, of fewer vectors: nearly constant ones are rounded alike, each time.
template <class A>
constexpr int kDifferenceBlock = 8 * kWidth<A>;

// Step 3 for K channels from c on. `sums` holds, per channel, a vector for each of the eight sums.
template <int K, class A, class S, class T>
inline void add_channel_sums(const ForwardChunk<A>& k, const Tile& tile, int c, const PixelWeights<A>& weights,
                             Vec<A>* sums) {
  const S* s[K];
  const T* t[K];
  Vec<A> sum[K][kSums];
  Origin<A> origin[K];
  FGD_UNROLL
  for (int i = 0; i < K; ++i) {
    s[i] = row<S>(k.student, c + i, tile.first);
    t[i] = row<T>(k.teacher, c + i, tile.first);
    origin[i] = {broadcast(k.out.origin_s[c + i]), broadcast(k.out.origin_t[c + i])};
  }
  const int ahead = tile.next ? tile.pixels : 0;
  auto add = [&](int j, auto lanes) {
    const Vec<A> fg = load<A>(weights.fg + j), bg = load<A>(weights.bg + j);
    const Vec<A> es = load<A>(weights.context_s + j), et = load<A>(weights.context_t + j);
    FGD_UNROLL
    for (int i = 0; i < K; ++i) {
      prefetch_far(s[i] + j + ahead);
      prefetch_far(t[i] + j + ahead);
      accumulate<A>(lanes.load(s[i] + j), lanes.load(t[i] + j), origin[i], fg, bg, es, et, sum[i]);
    }
  };
  for (int first = 0; first < tile.pixels; first += kPixelBlock<A>) {
    FGD_UNROLL
    for (int i = 0; i < K * kSums; ++i) sum[i / kSums][i % kSums] = Vec<A>{};
    const int end = smaller(first + kPixelBlock<A>, tile.pixels);
    Vec<A> d[K] = {}, d2[K] = {};
    for (int begin = first; begin < end; begin += kDifferenceBlock<A>) {
      for_vectors<A>(smaller(kDifferenceBlock<A>, end - begin), [&](int j, auto lanes) { add(begin + j, lanes); });
      FGD_UNROLL
      for (int i = 0; i < K; ++i) {
        d[i] += sum[i][kSumD], d2[i] += sum[i][kSumD2];
        sum[i][kSumD] = sum[i][kSumD2] = Vec<A>{};
      }
    }
    FGD_UNROLL
    for (int i = 0; i < K; ++i) {
      sum[i][kSumD] = d[i], sum[i][kSumD2] = d2[i];
      add_sums<A>(sum[i], weights.rescale, first == 0, sums + (c + i) * kSums);
    }
  }
}

template <class A, class S, class T>
void forward_nchw(ForwardChunk<A>& k, void* scratch) {
  ForwardScratch<A> work(scratch, k.channels);
  const int step = tile_pixels(k.channels, sizeof(S) + sizeof(T));
  SoftmaxState<A> state;
  choose_origin<A, S>(k.student, k.channels, k.pixels, k.out.origin_s);
  choose_origin<A, T>(k.teacher, k.channels, k.pixels, k.out.origin_t);
  int tiles = 0;
  for (int first = 0; first < k.pixels; first += step, ++tiles) {
    const Tile tile = tile_at(first, step, k.pixels);
    sum_channel_blocks<A>(k.channels, tile.pixels, kSoftmaxes, work.logits, work.weights,
                          [&](int c, int end, A* const* logits) {
                            for (; c + 4 <= end; c += 4) add_pixel_sums<4, A, S, T>(k, tile, c, logits);
                            for (; c < end; ++c) add_pixel_sums<1, A, S, T>(k, tile, c, logits);
                          });
    const PixelWeights<A> weights = finish_pixels<A, S, T>(k, tile, tiles, work, state);
    constexpr int K = kWidth<A> * sizeof(A) == 64 ? 2 : 1;  // AVX-512 has registers for the sums of two channels
    int c = 0;
    for (; c + K <= k.channels; c += K) add_channel_sums<K, A, S, T>(k, tile, c, weights, work.sums);
    for (; c < k.channels; ++c) add_channel_sums<1, A, S, T>(k, tile, c, weights, work.sums);
  }
  for (int c = 0; c < k.channels; ++c) {
    A sums[kSums];
    sum_lanes_of_8<A>(work.sums + c * kSums, sums);
    for (int q = 0; q < kSums; ++q) k.out.sums[q * k.channels + c] = sums[q];
  }
  finish_chunk<A>(k, step, tiles, state);
}

}  // namespace fgd::cpu::FGD_ISA

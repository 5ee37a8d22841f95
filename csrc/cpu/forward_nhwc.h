// Forward over a chunk whose channels are dense (channels_last). The three steps of forward_nchw.h, with lanes over
// channels: sums over channels need a merge of lanes per pixel, sums over pixels need none.
#pragma once

#include "tile.h"

namespace fgd::cpu::FGD_ISA {

constexpr int kChannelsDenseTile = 64;  // pixels
constexpr int kDifferences = 16;        // pixels whose d are added one by one: nearly constant ones are rounded alike

// Step 1 for two pixels: eight vectors of sums, merged together.
template <class A, class S, class T>
inline void sum_two_pixels(const ForwardChunk<A>& k, int first, int second, A* out) {
  const S* s[2] = {row<S>(k.student, 0, first), row<S>(k.student, 0, second)};
  const T* t[2] = {row<T>(k.teacher, 0, first), row<T>(k.teacher, 0, second)};
  Vec<A> total[8];
  sum_channel_vectors<A, 8>(k.channels, total, [&](int c, auto lanes, Vec<A>* sum) {
    const Vec<A> key_s = lanes.load(k.key_s + c), key_t = lanes.load(k.key_t + c);
    FGD_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Vec<A> sv = lanes.load(s[i] + c), tv = lanes.load(t[i] + c);
      sum[4 * i + kTeacher] += absolute<A>(tv);
      sum[4 * i + kStudent] += absolute<A>(sv);
      sum[4 * i + kContextS] = multiply_add<A>(key_s, sv, sum[4 * i + kContextS]);
      sum[4 * i + kContextT] = multiply_add<A>(key_t, tv, sum[4 * i + kContextT]);
    }
  });
  sum_lanes_of_8<A>(total, out);
}

// Step 3 for one vector of channels of one tile. `sums` holds kSums vectors per vector of channels. A tile is summed by
// itself and then added: pixels one by one into a chunk's sums would lose a digit where features have 16 bits.
template <class A, class S, class T, class Lanes>
FGD_INLINE void add_channel_vector(const ForwardChunk<A>& k, const Tile& tile, int c, Lanes lanes,
                                   const PixelWeights<A>& weights, Vec<A>* sums) {
  const S* s = row<S>(k.student, c, tile.first);
  const T* t = row<T>(k.teacher, c, tile.first);
  const Origin<A> origin{lanes.load(k.out.origin_s + c), lanes.load(k.out.origin_t + c)};
  Vec<A> sum[kSums] = {}, d{}, d2{};
  for (int begin = 0; begin < tile.pixels; begin += kDifferences) {
    const int end = begin + kDifferences < tile.pixels ? begin + kDifferences : tile.pixels;
    for (int j = begin; j < end; ++j, s += k.student.pixel, t += k.teacher.pixel)
      accumulate<A>(lanes.load(s), lanes.load(t), origin, broadcast(weights.fg[j]), broadcast(weights.bg[j]),
                    broadcast(weights.context_s[j]), broadcast(weights.context_t[j]), sum);
    d += sum[kSumD], d2 += sum[kSumD2];
    sum[kSumD] = sum[kSumD2] = Vec<A>{};
  }
  sum[kSumD] = d, sum[kSumD2] = d2;
  add_sums<A>(sum, weights.rescale, true, sums);
}

template <class A, class S, class T>
void forward_nhwc(ForwardChunk<A>& k, void* scratch) {
  constexpr int W = kWidth<A>;
  ForwardScratch<A> work(scratch, k.channels);
  SoftmaxState<A> state;
  choose_origin<A, S>(k.student, k.channels, k.pixels, k.out.origin_s);
  choose_origin<A, T>(k.teacher, k.channels, k.pixels, k.out.origin_t);
  int tiles = 0;
  for (int first = 0; first < k.pixels; first += kChannelsDenseTile, ++tiles) {
    const Tile tile = tile_at(first, kChannelsDenseTile, k.pixels);
    for (int j = 0; j < tile.pixels; j += 2) {
      const bool pair = j + 1 < tile.pixels;
      A sums[8];
      sum_two_pixels<A, S, T>(k, first + j, first + j + pair, sums);
      for (int i = 0; i <= pair; ++i)
        for (int q = 0; q < kSoftmaxes; ++q) work.logits[q][j + i] = sums[4 * i + q];
    }
    const PixelWeights<A> weights = finish_pixels<A, S, T>(k, tile, tiles, work, state);
    for_vectors<A>(k.channels, [&](int c, auto lanes) {
      add_channel_vector<A, S, T>(k, tile, c, lanes, weights, work.sums + c / W * kSums);
    });
  }
  for_vectors<A>(k.channels, [&](int c, auto lanes) {
    for (int q = 0; q < kSums; ++q) lanes.store(k.out.sums + q * k.channels + c, work.sums[c / W * kSums + q]);
  });
  finish_chunk<A>(k, kChannelsDenseTile, tiles, state);
}

}  // namespace fgd::cpu::FGD_ISA

// What both layouts share: a tile of pixels, the step from channel sums to softmax weights, and scratch memory.
#pragma once

#include "chunk.h"
#include "simd.h"

namespace fgd::cpu::FGD_ISA {

// Sums over channels: so many in order, then the blocks' sums. One chain over 2048 channels gathers too many roundings.
constexpr int kChannelBlock = 128;        // NCHW: a lane adds them all
constexpr int kChannelBlockVectors = 16;  // channels_last: a lane adds one of each vector

constexpr int kTileBytes = 512 * 1024;  // of features, both: a tile and its successor lie in a 2 MB second-level cache

inline int smaller(int a, int b) { return a < b ? a : b; }

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

// The lanes of a vector that lie inside a row: all of them, or the first few, with 0 in the others.
template <class A>
struct AllLanes {
  static constexpr bool kAll = true;
  template <class T>
  FGD_INLINE Vec<A> load(const T* p) const {
    return FGD_ISA::load<A>(p);
  }
  template <class T>
  FGD_INLINE void store(T* p, Vec<A> v) const {
    FGD_ISA::store<A>(p, v);
  }
};
template <class A>
struct FirstLanes {
  static constexpr bool kAll = false;
  int count;
  template <class T>
  FGD_INLINE Vec<A> load(const T* p) const {
    return load_first<A>(p, count);
  }
  template <class T>
  FGD_INLINE void store(T* p, Vec<A> v) const {
    store_first<A>(p, v, count);
  }
};

// body(j, lanes) for j = 0, width, .. : whole vectors first, then what is left of the row.
template <class A, class Body>
FGD_INLINE void for_vectors(int count, const Body& body) {
  const int whole = count / kWidth<A> * kWidth<A>;
  for (int j = 0; j < whole; j += kWidth<A>) body(j, AllLanes<A>{});
  if (whole < count) body(whole, FirstLanes<A>{count - whole});
}

template <class A>
inline void clear(A* map, int pixels) {
  for (int j = 0; j < pixels; j += kWidth<A>) store<A>(map + j, Vec<A>{});
}

// Per-pixel sums over channels into `total`, `count` maps: add(first, end, maps) adds a block of channels to maps that
// begin at zero. `part` holds a block's sums until they are added, and nothing afterwards.
template <class A, class Add>
inline void sum_channel_blocks(int channels, int pixels, int count, A* const* total, A* const* part, const Add& add) {
  for (int c = 0; c < channels; c += kChannelBlock) {
    A* const* maps = c == 0 ? total : part;
    for (int i = 0; i < count; ++i) clear(maps[i], pixels);
    add(c, channels - c < kChannelBlock ? channels : c + kChannelBlock, maps);
    for (int i = 0; c > 0 && i < count; ++i)
      for (int j = 0; j < pixels; j += kWidth<A>) add_to<A>(total[i] + j, load<A>(part[i] + j));
  }
}

// The same with lanes over channels, into Count vectors: add(first channel, lanes, sums) adds a vector of channels.
template <class A, int Count, class Add>
FGD_INLINE void sum_channel_vectors(int channels, Vec<A>* total, const Add& add) {
  constexpr int block = kChannelBlockVectors * kWidth<A>;
  for (int first = 0; first < channels; first += block) {
    Vec<A> part[Count] = {};
    const int count = channels - first < block ? channels - first : block;
    for_vectors<A>(count, [&](int c, auto lanes) { add(first + c, lanes, part); });
    FGD_UNROLL
    for (int i = 0; i < Count; ++i) total[i] = first == 0 ? part[i] : total[i] + part[i];
  }
}

// Running maxima of the four softmaxes, and each tile's.
template <class A>
struct SoftmaxState {
  A maximum[kSoftmaxes], tile_maximum[kMaxTiles][kSoftmaxes];
  A lost[kSoftmaxes], tile_lost[kMaxTiles][kSoftmaxes];  // what is to be added to them
  SoftmaxState() {
    for (int q = 0; q < kSoftmaxes; ++q) {
      maximum[q] = static_cast<A>(-__builtin_inf());
      lost[q] = 0;
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
};

// The sums of some pixels onto a channel's so far, which a tile's first pixels bring to the new maxima.
template <class A>
FGD_INLINE void add_sums(const Vec<A>* part, const A* rescale, bool first, Vec<A>* sums) {
  if (first) {
    sums[kSumFg] *= rescale[kTeacher];
    sums[kSumBg] *= rescale[kTeacher];
    sums[kSumContextS] *= rescale[kContextS];
    sums[kSumContextT] *= rescale[kContextT];
  }
  FGD_UNROLL
  for (int q = 0; q < kSums; ++q) sums[q] += part[q];
}

// What the sums of the contexts subtract from a channel, or a vector of channels.
template <class A>
struct Origin {
  Vec<A> s, t;
};

// One vector of (s, t) pairs into the eight sums.
template <class A>
FGD_INLINE void accumulate(Vec<A> s, Vec<A> t, const Origin<A>& origin, Vec<A> fg, Vec<A> bg, Vec<A> es, Vec<A> et,
                           Vec<A>* sum) {
  const Vec<A> d = s - t, square = d * d;
  sum[kSumFg] = multiply_add<A>(square, fg, sum[kSumFg]);
  sum[kSumBg] = multiply_add<A>(square, bg, sum[kSumBg]);
  sum[kSumD] += d;
  sum[kSumD2] += square;
  sum[kSumAbsS] += absolute<A>(s);
  sum[kSumAbsT] += absolute<A>(t);
  sum[kSumContextS] = multiply_add<A>(es, s - origin.s, sum[kSumContextS]);
  sum[kSumContextT] = multiply_add<A>(et, t - origin.t, sum[kSumContextT]);
}

// What the sums of the contexts subtract: a channel's feature where three pixels have the same one, and probably all,
// else 0. So the context of a constant map is that map, exactly; and a pixel with all the weight is the context,
// exactly, as nothing has been subtracted from it.
template <class A, class T>
inline void choose_origin(const Features& f, int channels, int pixels, A* origin) {
  for (int c = 0; c < channels; ++c) {
    auto at = [&](int p) { return load_first<A>(row<T>(f, c, p), 1)[0]; };
    const A first = at(0);
    origin[c] = at(pixels / 2) == first && at(pixels - 1) == first ? first : 0;
  }
}

// A logit as it should be, before its factor: the sum that softmax q sees of one pixel, in float64.
template <class A, class S, class T>
inline double exact_logit(const ForwardChunk<A>& k, int q, int p) {
  double sum = 0;
  for (int c = 0; c < k.channels; ++c) {
    const double s = load_first<A>(row<S>(k.student, c, p), 1)[0], t = load_first<A>(row<T>(k.teacher, c, p), 1)[0];
    sum += q == kTeacher   ? __builtin_fabs(t)
           : q == kStudent ? __builtin_fabs(s)
                           : (q == kContextS ? k.key_s[c] * s : k.key_t[c] * t);
  }
  return sum;
}

// The largest few logits of a tile: where the others lie far below, all that follows is theirs, and a logit of some
// hundreds has no room for the digits that its exponential shows. They are summed again, into two numbers.
constexpr int kExactLogits = 4;
constexpr float kExactSpread = 8;  // largest less smallest logit of a tile: below, many pixels share in the weight

template <class A, class S, class T>
inline void sum_largest_again(const ForwardChunk<A>& k, const Tile& tile, int q, A* logits, A* lost) {
  int largest[kExactLogits], count = 0;
  for (int j = 0; j < tile.pixels; ++j) {
    if (count == kExactLogits && !(logits[j] > logits[largest[count - 1]])) continue;
    int place = count < kExactLogits ? count++ : count - 1;
    for (; place > 0 && logits[j] > logits[largest[place - 1]]; --place) largest[place] = largest[place - 1];
    largest[place] = j;
  }
  for (int i = 0; i < count; ++i) {
    const double exact = exact_logit<A, S, T>(k, q, tile.first + largest[i]);
    const A nearest = static_cast<A>(exact), rest = static_cast<A>(exact - nearest);
    logits[largest[i]] = nearest;
    lost[largest[i]] = rest == rest ? rest : 0;  // NaN beside an infinity
  }
}

// The largest and the smallest logit of a tile; a NaN is neither.
template <class A>
struct LogitRange {
  A largest, smallest;
};

template <class A>
inline LogitRange<A> logit_range(const A* logits, const Tile& tile) {
  const A infinity = static_cast<A>(__builtin_inf());
  Vec<A> best = broadcast(-infinity), worst = broadcast(-infinity);  // of the negated logits
  for_vectors<A>(tile.pixels, [&](int j, auto lanes) {
    const Vec<A> z = load<A>(logits + j);
    best = larger<A>(z, best);
    worst = larger<A>(lanes.kAll ? -z : select<A>((Bits<A>)(z == -infinity), worst, -z), worst);
  });
  return {largest_lane<A>(best), -largest_lane<A>(worst)};
}

// The lanes behind a tile's pixels get an exponential of 0.
template <class A>
inline void pad(A* logits, int pixels) {
  for (int j = pixels; j % kWidth<A> != 0; ++j) logits[j] = static_cast<A>(-__builtin_inf());
}

// What sums that are weighted with exponentials shrink by as the largest logit grows.
template <class A>
inline A rescale_of(A before, A before_lost, A now, A now_lost, double factor) {
  if (before == now) return 1;
  if (before == static_cast<A>(-__builtin_inf())) return 0;
  return static_cast<A>(__builtin_exp((double{before} - now + (double{before_lost} - now_lost)) * factor));
}

// What is to be added to the logit `largest`, so that a pixel with all the weight gets exp(0) = 1, exactly.
template <class A>
inline A lost_of(A largest, const A* logits, const A* lost, int pixels) {
  int j = 0;
  while (j + 1 < pixels && logits[j] != largest) ++j;
  return lost[j];
}

// A softmax's sums over channels are its logits but for this factor, which comes when a maximum has been subtracted: a
// large logit has no room for the digits that its exponential shows.
template <class A>
inline double logit_factor(const ForwardChunk<A>& k, int q) {
  return q == kTeacher || q == kStudent ? k.inverse_ct : 1;
}

// Logits less the largest so far, factor included; -inf on padding. lost: null where nothing is to be added.
template <class A>
inline void subtract_largest(A largest, A largest_lost, const A* lost, double factor, A* logits, int pixels) {
  for (int j = 0; j < pixels; j += kWidth<double>) {
    const Vec<double> rest = lost ? load<double>(lost + j) - largest_lost : broadcast(-double{largest_lost});
    store<double>(logits + j, ((load<double>(logits + j) - largest) + rest) * factor);
  }
  pad(logits, pixels);
}

// Step 2 of the forward pass: logits become exponentials against the running maxima, and these the tile's weights.
template <class A, class S, class T>
inline PixelWeights<A> finish_pixels(ForwardChunk<A>& k, const Tile& tile, int index, ForwardScratch<A>& work,
                                     SoftmaxState<A>& state) {
  constexpr int W = kWidth<A>;
  PixelWeights<A> out{};
  for (int q = 0; q < kSoftmaxes; ++q) {
    A *logits = work.logits[q], *lost = work.weights[q];
    const bool activation = q == kTeacher || q == kStudent;
    const double factor = logit_factor(k, q);
    pad(logits, tile.pixels);
    LogitRange<A> range = logit_range(logits, tile);
    const bool exact = sizeof(A) < sizeof(double) && (range.largest - range.smallest) * factor > kExactSpread;
    if (exact) {
      clear(lost, tile.pixels);
      sum_largest_again<A, S, T>(k, tile, q, logits, lost);
      range = logit_range(logits, tile);
    }
    const A before = state.maximum[q], before_lost = state.lost[q];
    if (range.largest > before) {
      state.maximum[q] = range.largest;
      state.lost[q] = exact ? lost_of(range.largest, logits, lost, tile.pixels) : 0;
    }
    const A now = state.maximum[q], now_lost = state.lost[q];
    out.rescale[q] = rescale_of(before, before_lost, now, now_lost, factor);
    state.tile_maximum[index][q] = now;
    state.tile_lost[index][q] = now_lost;
    subtract_largest<A>(now, now_lost, exact ? lost : nullptr, factor, logits, tile.pixels);
    for_vectors<A>(tile.pixels, [&](int j, auto lanes) {
      const Vec<A> z = load<A>(logits + j);
      if (activation) lanes.store(k.softmax[q] + tile.first + j, z);
      if (q == kStudent) return;        // weights no sum
      const Vec<A> e = exponential(z);  // 0 on padding: exp(-inf)
      store<A>(logits + j, e);
      if (!activation) lanes.store(k.softmax[q] + tile.first + j, e);
    });
  }
  for (int j = 0; j < tile.pixels; j += W) {
    const Vec<A> weight = load<A>(k.mask + tile.first + j);
    const Vec<A> e = load<A>(work.logits[kTeacher] + j);
    const Bits<A> outside = weight == 0;
    store<A>(work.weights[0] + j, e * weight);
    store<A>(work.weights[1] + j, (Vec<A>)((Bits<A>)e & outside));
  }
  out.fg = work.weights[0];
  out.bg = work.weights[1];
  out.context_s = work.logits[kContextS];
  out.context_t = work.logits[kContextT];
  return out;
}

// The chunk's maxima; all pixels of a softmax brought to the chunk's maximum.
template <class A>
inline void finish_chunk(ForwardChunk<A>& k, int step, int tiles, const SoftmaxState<A>& state) {
  for (int q = 0; q < kSoftmaxes; ++q) {
    k.out.maximum[q] = state.maximum[q];
    k.out.maximum_lost[q] = state.lost[q];
    for (int i = 0; i + 1 < tiles; ++i) {
      if (state.tile_maximum[i][q] == state.maximum[q]) continue;
      const double lost = double{state.tile_lost[i][q]} - state.lost[q];
      const double difference = (double{state.tile_maximum[i][q]} - state.maximum[q] + lost) * logit_factor(k, q);
      const A factor = exponential_of(static_cast<A>(difference));
      for (int p = i * step; p < (i + 1) * step; ++p) {
        A& x = k.softmax[q][p];
        x = q == kTeacher || q == kStudent ? static_cast<A>(x + difference) : x * factor;
      }
    }
  }
}

}  // namespace fgd::cpu::FGD_ISA

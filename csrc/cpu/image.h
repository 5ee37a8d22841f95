// After all chunks of one image on one level: merge their partial sums, apply the softmaxes, and turn the
// differences of logits into what the backward pass reads. The order is fixed, and sums run in float64.
#pragma once

#include "chunk.h"
#include "simd.h"

namespace fgd::cpu::FGD_ISA {

// In float64: with a normaliser of float32 every attention of an image would be off by the same rounding, which is all
// there is to see where student and teacher are nearly alike.
template <class X>
inline double sum_of(const X* from, const X* end) {
  constexpr int kParts = 16;
  double part[kParts] = {};
  for (; from + kParts <= end; from += kParts) FGD_UNROLL
  for (int i = 0; i < kParts; ++i) part[i] += from[i];
  for (int i = 0; from < end; ++from, ++i) part[i] += *from;
  double sum = 0;
  for (double x : part) sum += x;
  return sum;
}

// A^S (7) of the image, in float64, but for its factor P/Z: exp(logit - maximum). shift: the chunk's maximum less the
// image's.
template <class A>
inline void exponentials(const A* differences, double shift, double* out, int pixels) {
  constexpr int W = kWidth<double>;
  int p = 0;
  for (; p + W <= pixels; p += W) store<double>(out + p, exponential(load<double>(differences + p) + shift));
  if (p == pixels) return;
  double last[W];
  for (int i = 0; i < W; ++i) last[i] = p + i < pixels ? differences[p + i] + shift : 0;
  const Vec<double> e = exponential(load<double>(static_cast<const double*>(last)));
  store_first<double>(out + p, e, pixels - p);
}

// factor[q][chunk]: what brings a chunk's exponentials to the image's maximum, over the image's normaliser.
// share[q][chunk]: a chunk's part of a softmax, which is 1.
// attention[q]: A^S of teacher and student, as in `exponentials`, and then with its factor.
template <class A>
inline void softmax_factors(const ImageMerge<A>& m, double* const* factor, double* const* share,
                            double* const* attention) {
  for (int q = 0; q < kSoftmaxes; ++q) {
    const double scale_of_logits = q == kTeacher || q == kStudent ? m.inverse_ct : 1;
    double best = -__builtin_inf(), normaliser = 0;
    for (int i = 0; i < m.chunks; ++i)
      if (m.chunk(i).largest(q) > best) best = m.chunk(i).largest(q);
    const A* map = m.maps + int64_t{q} * m.pixels;
    for (int i = 0; i < m.chunks; ++i) {
      const int begin = i * kChunkPixels, end = m.end(i);
      const double shift = m.chunk(i).largest(q) == best ? 0 : (m.chunk(i).largest(q) - best) * scale_of_logits;
      factor[q][i] = __builtin_exp(shift);
      if (q == kTeacher || q == kStudent) {
        exponentials(map + begin, shift, attention[q] + begin, end - begin);
        normaliser += share[q][i] = sum_of(attention[q] + begin, attention[q] + end);
      } else {
        normaliser += share[q][i] = sum_of(map + begin, map + end) * factor[q][i];
      }
    }
    for (int i = 0; i < m.chunks; ++i) factor[q][i] /= normaliser, share[q][i] /= normaliser;
    const double scale = m.pixels / normaliser;
    for (int p = 0; (q == kTeacher || q == kStudent) && p < m.pixels; ++p) attention[q][p] *= scale;
  }
}

// Which softmax a sum over pixels is weighted with; -1: none.
inline int softmax_of(int sum) {
  switch (sum) {
    case kSumFg:
    case kSumBg:
      return kTeacher;
    case kSumContextS:
      return kContextS;
    case kSumContextT:
      return kContextT;
    default:
      return -1;
  }
}

template <class A>
inline void merge_sums(const ImageMerge<A>& m, double* const* factor, double* const* share, double* sums) {
  for (int64_t i = 0; i < int64_t{kSums} * m.channels; ++i) sums[i] = 0;
  for (int i = 0; i < m.chunks; ++i) {
    const ChunkSums<A> chunk = m.chunk(i);
    const A* from = chunk.sums;
    for (int k = 0; k < kSums; ++k) {
      const double scale = softmax_of(k) < 0 ? 1. : factor[softmax_of(k)][i];
      for (int c = 0; c < m.channels; ++c) sums[k * m.channels + c] += scale * from[k * m.channels + c];
    }
    for (int c = 0; c < m.channels; ++c) {
      sums[kSumContextS * m.channels + c] += share[kContextS][i] * chunk.origin_s[c];
      sums[kSumContextT * m.channels + c] += share[kContextT][i] * chunk.origin_t[c];
    }
  }
}

// A^C (8) from Σp |F|, in place.
inline void channel_softmax(double* x, int channels, double inverse_pt) {
  double best = -__builtin_inf(), sum = 0;
  for (int c = 0; c < channels; ++c) {
    x[c] *= inverse_pt;
    if (x[c] > best) best = x[c];
  }
  for (int c = 0; c < channels; ++c) sum += x[c] = __builtin_exp(x[c] - best);
  for (int c = 0; c < channels; ++c) x[c] *= channels / sum;
}

// sign(A_s - A_t). Attentions of float32 features that differ by less than their normalisers may be wrong by are equal:
// those of maps with the same numbers in other places differ by the order of a sum.
template <class A>
inline double sign_of(double student, double teacher) {
  const double x = student - teacher, equal = sizeof(A) < sizeof(double) ? 0x1p-48 * teacher : 0;
  return x > equal ? 1. : x < -equal ? -1. : 0 * x;
}

// Channels: A^C of both, their L1 distance and its gradient, the two focal sums.
template <class A>
inline void finish_channels(ImageMerge<A>& m, double* sums, int background) {
  double *teacher = sums + kSumAbsT * m.channels, *student = sums + kSumAbsS * m.channels;
  channel_softmax(teacher, m.channels, m.inverse_pt);
  channel_softmax(student, m.channels, m.inverse_pt);
  double signed_sum = 0;
  for (int c = 0; c < m.channels; ++c) {
    const double difference = student[c] - teacher[c];
    m.terms[kFg] += m.pixels * teacher[c] * sums[kSumFg * m.channels + c];
    m.terms[kBg] += m.pixels * teacher[c] * sums[kSumBg * m.channels + c] / (background > 0 ? background : 1);
    m.terms[kAttention] += __builtin_fabs(difference);
    m.squares += sums[kSumD2 * m.channels + c];
    signed_sum += sign_of<A>(student[c], teacher[c]) * student[c];
  }
  for (int c = 0; c < m.channels; ++c) {
    const double sign = sign_of<A>(student[c], teacher[c]);
    m.stats[kStatAttention * m.channels + c] = static_cast<A>(teacher[c]);
    m.stats[kStatAttentionGrad * m.channels + c] =
        static_cast<A>(student[c] * (sign - signed_sum / m.channels) * m.inverse_pt);
    m.differences[c] = sums[kSumD * m.channels + c];
    m.stats[kStatContextS * m.channels + c] = static_cast<A>(sums[kSumContextS * m.channels + c]);
    m.stats[kStatContextT * m.channels + c] = static_cast<A>(sums[kSumContextT * m.channels + c]);
  }
}

// Pixels: the distance of A^S of both and its gradient; the maps from differences to what is saved. Attentions are
// compared in float64: at high temperatures they differ in their last digits.
template <class A>
inline void finish_pixels(ImageMerge<A>& m, double* const* factor, double* const* attention, int background) {
  A* map[kMaps];
  for (int k = 0; k < kMaps; ++k) map[k] = m.maps + int64_t{k} * m.pixels;
  const double *teacher = attention[kTeacher], *student = attention[kStudent];
  double distance = 0, signed_sum = 0;
  for (int begin = 0; begin < m.pixels; begin += kMinTilePixels) {
    const int end = begin + kMinTilePixels < m.pixels ? begin + kMinTilePixels : m.pixels;
    double part = 0, signed_part = 0;  // of a few pixels: sums of as many digits as features of float64 have
    for (int p = begin; p < end; ++p) {
      part += __builtin_fabs(student[p] - teacher[p]);
      signed_part += sign_of<A>(student[p], teacher[p]) * student[p];
    }
    distance += part;
    signed_sum += signed_part;
  }
  m.terms[kAttention] += distance;
  const double mean = signed_sum / m.pixels;
  const double outside = -1. / (background > 0 ? background : 1);
  for (int i = 0; i < m.chunks; ++i) {
    const A context_s = static_cast<A>(factor[kContextS][i]), context_t = static_cast<A>(factor[kContextT][i]);
    for (int p = i * kChunkPixels; p < m.end(i); ++p) {
      const double sign = sign_of<A>(student[p], teacher[p]);
      map[kMapFocal][p] = static_cast<A>(teacher[p] * (m.mask[p] > 0 ? m.mask[p] : outside));
      map[kMapAttention][p] = static_cast<A>(student[p] * (sign - mean) * m.inverse_ct);
      map[kMapContextS][p] *= context_s;
      map[kMapContextT][p] *= context_t;
    }
  }
}

template <class A>
void merge_image(ImageMerge<A>& m, void* scratch) {
  double *at = static_cast<double*>(scratch), *factor[kSoftmaxes], *share[kSoftmaxes], *attention[2];
  for (double*& map : attention) map = at, at += m.pixels;
  for (double*& of_chunk : factor) of_chunk = at, at += m.chunks;
  for (double*& of_chunk : share) of_chunk = at, at += m.chunks;
  int background = 0;
  for (int p = 0; p < m.pixels; ++p) background += m.mask[p] == 0;
  softmax_factors(m, factor, share, attention);
  merge_sums(m, factor, share, at);
  finish_channels(m, at, background);
  finish_pixels(m, factor, attention, background);
}

}  // namespace fgd::cpu::FGD_ISA

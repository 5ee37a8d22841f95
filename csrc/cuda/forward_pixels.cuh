// The middle of a forward tile, for blocks whose warps hold parts of the four sums of every pixel: from these parts to
// the weights of the channel sums.
//
//   z_t = Σc |t|,  z_s likewise,  k_s = Σc Wk_s·s,  k_t = Σc Wk_t·t               the four logits of a pixel
//   e = exp((z - m)·scale), scale = 1/(C·T) for z and 1 for k, m the running      what was summed before is rescaled
//   maximum of the chunk's pixels so far
//   weights of the channel sums: fg·e_t, [fg = 0]·e_t, e_ks, e_kt
#pragma once

#include "mask.cuh"

namespace fgd::cuda {

enum Weight : int { kWeightFg, kWeightBg, kWeightContextS, kWeightContextT, kWeights };

template <class A, int kPixels>
struct PixelStep {  // in shared memory
  A part[kSoftmaxes][kWarps][kPixels];
  A weight[kWeights][kPixels];
  A rescale[kSoftmaxes];
};

// Of one softmax; the kPixels threads of a softmax hold the same maximum and each its own part of the rest.
template <class A>
struct SoftmaxState {
  A maximum = minus_infinity<A>();
  double normaliser = 0;     // of as many digits as Exponential's: an error of it is common to all pixels
  Exponential<A> e, factor;  // of the pixel that is to be added; what older sums shrink by
  // highest: of the new pixels. Pixels behind the end have an exponential of 0.
  FGD_DEVICE void take(A logit, A highest, bool valid, A scale) {
    const A now = larger(maximum, highest);
    factor = shrinkage(maximum, now, scale);
    e = valid ? Exponential<A>((logit - now) * scale) : Exponential<A>();
    maximum = now;
  }
  FGD_DEVICE void add() { normaliser = normaliser * factor.exact() + e.exact(); }
};

// A chunk's numbers of one softmax: see ChunkNumber.
template <class A>
FGD_DEVICE void write_softmax(int softmax, A maximum, double normaliser, A* numbers) {
  const A nearest = static_cast<A>(normaliser);
  numbers[kChunkMaximum + softmax] = maximum;
  numbers[kChunkNormaliser + softmax] = nearest;
  numbers[kChunkNormaliserRest + softmax] = isfinite(nearest) ? static_cast<A>(normaliser - nearest) : A{0};
}

// Σ over the warps' parts of a pixel, in a fixed order and few steps.
template <class A, int kPixels>
FGD_DEVICE A sum_of_parts(const A (&part)[kWarps][kPixels], int pixel) {
  A sum[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum[w] = part[w][pixel];
#pragma unroll
  for (int half = kWarps / 2; half > 0; half /= 2)
#pragma unroll
    for (int w = 0; w < half; ++w) sum[w] += sum[w + half];
  return sum[0];
}

// From a pixel's logit to the weights and `map`, where the pixel is valid; threads -> (softmax, pixel), kPixels
// neighbouring threads a softmax. scale: of this softmax.
template <int kPixels, class A, class Step>
FGD_DEVICE void finish_logit(Step& step, int softmax, int pixel, A logit, A scale, A mask, bool valid, A* map,
                             SoftmaxState<A>& state) {
  const A highest = highest_of<kPixels>(valid ? logit : minus_infinity<A>());
  state.take(logit, highest, valid, scale);
  const A e = state.e.rounded();
  if (softmax == kTeacher) {
    step.weight[kWeightFg][pixel] = e * mask;
    step.weight[kWeightBg][pixel] = mask > 0 ? A{0} : e;
  } else if (softmax != kStudent) {
    step.weight[softmax == kContextS ? kWeightContextS : kWeightContextT][pixel] = e;
  }
  if (pixel == 0) step.rescale[softmax] = state.factor.rounded();
  if (valid) map[pixel] = logit;
}

// Between two barriers. mask: [kPixels]; scale: of this thread's softmax. Pixels at and behind `end` get weight 0.
template <class A, int kPixels>
FGD_DEVICE void finish_pixels(PixelStep<A, kPixels>& step, const float* mask, A scale, int first, int end, A* maps,
                              int64_t map_size, SoftmaxState<A>& state) {
  if (threadIdx.x >= kSoftmaxes * kPixels) return;
  const int softmax = threadIdx.x / kPixels, pixel = threadIdx.x % kPixels;
  const A weight = mask[pixel];
  finish_logit<kPixels>(step, softmax, pixel, sum_of_parts(step.part[softmax], pixel), scale, weight,
                        first + pixel < end, maps + softmax * map_size + first, state);
}

// Behind the second barrier, where no other warp waits for it.
template <class A, int kPixels>
FGD_DEVICE void add_exponentials(SoftmaxState<A>& state) {
  if (threadIdx.x < kSoftmaxes * kPixels) state.add();
}

// The chunk's maxima, normalisers and background pixels, behind its sums.
template <class A, int kPixels>
FGD_DEVICE void write_softmaxes(const SoftmaxState<A>& state, int background, A* numbers) {
  if (threadIdx.x >= kSoftmaxes * kPixels) return;
  const int softmax = threadIdx.x / kPixels;
  const double normaliser = add_over_lanes<1, kPixels>(state.normaliser);
  if (threadIdx.x % kPixels != 0) return;
  write_softmax(softmax, state.maximum, normaliser, numbers);
  if (softmax == kTeacher) numbers[kChunkBackground] = static_cast<A>(background);
}

// One pair into a channel's sums, those of |s| and |t| excepted; the first one begins them.
template <class A>
FGD_DEVICE void accumulate_difference(bool first, A s, A t, A fg, A bg, A (&sum)[kSums]) {
  const A d = s - t, square = d * d;
  sum[kSumFg] = first ? square * fg : sum[kSumFg] + square * fg;
  sum[kSumBg] = first ? square * bg : sum[kSumBg] + square * bg;
  sum[kSumD] = first ? d : sum[kSumD] + d;
  sum[kSumD2] = first ? square : sum[kSumD2] + square;
}
template <class A>
FGD_DEVICE void accumulate_contexts(bool first, A s, A t, A context_s, A context_t, A (&sum)[kSums]) {
  sum[kSumContextS] = first ? context_s * s : sum[kSumContextS] + context_s * s;
  sum[kSumContextT] = first ? context_t * t : sum[kSumContextT] + context_t * t;
}
template <class A>
FGD_DEVICE void accumulate(bool first, A s, A t, A fg, A bg, A context_s, A context_t, A (&sum)[kSums]) {
  accumulate_difference(first, s, t, fg, bg, sum);
  accumulate_contexts(first, s, t, context_s, context_t, sum);
}

// Sums of some pixels onto those so far.
template <class A>
FGD_DEVICE void add_part(A teacher, A context_s, A context_t, const A (&part)[kSums], A (&sum)[kSums]) {
  sum[kSumFg] = sum[kSumFg] * teacher + part[kSumFg];
  sum[kSumBg] = sum[kSumBg] * teacher + part[kSumBg];
  sum[kSumD] += part[kSumD];
  sum[kSumD2] += part[kSumD2];
  sum[kSumContextS] = sum[kSumContextS] * context_s + part[kSumContextS];
  sum[kSumContextT] = sum[kSumContextT] * context_t + part[kSumContextT];
}

template <class A>
FGD_DEVICE void rescale_sums(A teacher, A context_s, A context_t, A (&sum)[kSums]) {
  sum[kSumFg] *= teacher;
  sum[kSumBg] *= teacher;
  sum[kSumContextS] *= context_s;
  sum[kSumContextT] *= context_t;
}

}  // namespace fgd::cuda

// The middle of a forward tile, for blocks whose warps hold parts of the four sums of every pixel: from these parts to
// the weights of the channel sums.
//
//   z_t = Σc |t|/(C·T),  z_s likewise,  k_s = Σc Wk_s·s,  k_t = Σc Wk_t·t         the four logits of a pixel
//   e = exp(z - m), m the running maximum of the chunk's pixels so far            what was summed before is rescaled
//   weights of the channel sums: fg·e_t, [fg = 0]·e_t, e_ks, e_kt
#pragma once

#include "boxes.cuh"

namespace fgd::cuda {

enum Weight : int { kWeightFg, kWeightBg, kWeightContextS, kWeightContextT, kWeights };

template <class A, int kPixels>
struct PixelStep {  // in shared memory
  A part[kSoftmaxes][kWarps][kPixels];
  float box[kThreads / kPixels][kPixels];
  A weight[kWeights][kPixels];
  A rescale[kSoftmaxes];
};

// Of one softmax; the kPixels threads of a softmax hold the same maximum and each its own part of the rest.
template <class A>
struct SoftmaxState {
  A maximum = minus_infinity<A>(), normaliser = 0;
  int background = 0;
};

// Every warp rasterises some of the boxes: thread -> (pixel, share of the boxes).
template <class A, int kPixels>
FGD_DEVICE void rasterise(const PyramidParams& p, const Level& level, const BoxList& boxes, int first,
                          PixelStep<A, kPixels>& step) {
  if (boxes.count == 0) return;
  const int pixel = threadIdx.x % kPixels, share = threadIdx.x / kPixels;
  step.box[share][pixel] = box_weight(p, level, boxes, first + pixel, share, kThreads / kPixels);
}

// Between two barriers; threads -> (softmax, pixel). Pixels at and behind `end` get weight 0.
template <class A, int kPixels>
FGD_DEVICE void finish_pixels(PixelStep<A, kPixels>& step, bool any_boxes, A inverse_ct, int first, int end, A* maps,
                              int64_t map_size, SoftmaxState<A>& state) {
  if (threadIdx.x >= kSoftmaxes * kPixels) return;
  const int softmax = threadIdx.x / kPixels, pixel = threadIdx.x % kPixels;
  const bool valid = first + pixel < end;
  A logit = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) logit += step.part[softmax][w][pixel];
  if (softmax == kTeacher || softmax == kStudent) logit *= inverse_ct;
  if (valid) maps[softmax * map_size + first + pixel] = logit;
  const A highest = max_over_lanes<1, kPixels>(valid ? logit : minus_infinity<A>());
  const A now = larger(state.maximum, highest), factor = rescale(state.maximum, now);
  const A e = valid ? exponential(logit - now) : A{0};
  state.maximum = now;
  state.normaliser = state.normaliser * factor + e;
  if (pixel == 0) step.rescale[softmax] = factor;
  if (softmax == kTeacher) {
    float weight = 0;
    if (any_boxes)
#pragma unroll
      for (int share = 0; share < kThreads / kPixels; ++share) weight = fmaxf(weight, step.box[share][pixel]);
    step.weight[kWeightFg][pixel] = e * static_cast<A>(weight);
    step.weight[kWeightBg][pixel] = weight > 0 ? A{0} : e;
    state.background += valid && weight == 0;
  } else if (softmax != kStudent) {
    step.weight[softmax == kContextS ? kWeightContextS : kWeightContextT][pixel] = e;
  }
}

// The chunk's maxima, normalisers and background pixels, behind its sums.
template <class A, int kPixels>
FGD_DEVICE void write_softmaxes(const SoftmaxState<A>& state, A* numbers) {
  if (threadIdx.x >= kSoftmaxes * kPixels) return;
  const int softmax = threadIdx.x / kPixels, pixel = threadIdx.x % kPixels;
  const A normaliser = add_over_lanes<1, kPixels>(state.normaliser);
  const int background = add_over_lanes<1, kPixels>(state.background);
  if (pixel != 0) return;
  numbers[softmax] = state.maximum;
  numbers[kSoftmaxes + softmax] = normaliser;
  if (softmax == kTeacher) numbers[2 * kSoftmaxes] = static_cast<A>(background);
}

template <class A>
FGD_DEVICE A inverse_ct(const PyramidParams& p, const Level& level) {
  return static_cast<A>(1 / (level.channels * p.spatial_temperature));
}

// One pair into a channel's sums, those of |s| and |t| excepted.
template <class A>
FGD_DEVICE void accumulate(A s, A t, A fg, A bg, A context_s, A context_t, A (&sum)[kSums]) {
  const A d = s - t, square = d * d;
  sum[kSumFg] += square * fg;
  sum[kSumBg] += square * bg;
  sum[kSumD] += d;
  sum[kSumD2] += square;
  sum[kSumContextS] += context_s * s;
  sum[kSumContextT] += context_t * t;
}

template <class A>
FGD_DEVICE void rescale_sums(A teacher, A context_s, A context_t, A (&sum)[kSums]) {
  sum[kSumFg] *= teacher;
  sum[kSumBg] *= teacher;
  sum[kSumContextS] *= context_s;
  sum[kSumContextT] *= context_t;
}

}  // namespace fgd::cuda

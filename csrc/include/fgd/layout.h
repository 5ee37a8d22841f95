// What CPU and CUDA share: storage types, what the forward pass leaves for the backward pass, names of the small sums.
//
// One level, one image: C channels, P = H·W pixels. Two flat buffers are saved, level after level, image after image:
//
//   maps   [level][image][kMaps][P]     per pixel
//   stats  [level][image][kStats][C]    per channel
//
// so image n of level l starts at  kMaps · N · (P of the levels before)  + n · kMaps · P, and likewise with C.
#pragma once

#include <cstdint>

namespace fgd {

// Storage types of features.
enum DType : int { kFloat32, kFloat16, kBFloat16, kFloat64 };

// Per pixel, saved. Until an image is merged, the four places hold the exponentials of enum Softmax, in its order.
enum Map : int {
  kMapFocal,      // A^S_t[p]·fg[p] where a box covers p, -A^S_t[p]/n_bg elsewhere
  kMapAttention,  // gradient of Σp |A^S_s - A^S_t| with respect to Σc |s[c,p]|
  kMapContextS,   // softmax_p of the student's context logits
  kMapContextT,   // softmax_p of the teacher's context logits
  kMaps
};

// Per channel, saved.
enum Stat : int {
  kStatAttention,      // A^C_t[c]
  kStatAttentionGrad,  // gradient of Σc |A^C_s - A^C_t| with respect to Σp |s[c,p]|
  kStatShift,          // r[c] = v_s[c] - v_t[c]
  kStatShiftGrad,      // gradient of L_gl with respect to r[c]
  kStatContextS,       // ctx_s[c]
  kStatContextT,       // ctx_t[c]
  kStats
};

// The four online softmaxes over pixels, each with a running maximum and a sum of exponentials.
enum Softmax : int { kTeacher, kStudent, kContextS, kContextT, kSoftmaxes };

// The eight sums over pixels that one pass takes for every channel (section "Forward" of docs/kernels.md).
enum Sum : int {
  kSumFg,        // Qf = Σ fg·e·d²
  kSumBg,        // Qb = Σ [fg = 0]·e·d²
  kSumD,         // D1 = Σ d
  kSumD2,        // D2 = Σ d²
  kSumAbsS,      // Σ |s|
  kSumAbsT,      // Σ |t|
  kSumContextS,  // Σ exp(student's context logit)·s
  kSumContextT,  // Σ exp(teacher's context logit)·t
  kSums
};

// The four terms of the loss.
enum Term : int { kFg, kBg, kAttention, kGlobal, kTerms };

}  // namespace fgd

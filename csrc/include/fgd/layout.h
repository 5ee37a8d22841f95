// What the backends share: storage types and layouts, limits, what the forward pass leaves for the backward pass, names
// of the small sums. fgd_kernels/shared.py and fgd_kernels/triton_kernels/ name the same rows, tested against these.
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

// What lies side by side in memory: the pixels of a channel (NCHW) or the channels of a pixel (channels_last). A row is
// what is dense; strides between rows and between images are free.
enum Layout : int { kPixelsDense, kChannelsDense, kLayouts };

constexpr int kMaxChannels = 2048;  // of a level

// Per pixel, saved. Until an image is merged, the four places hold what its softmaxes need, in the order of enum
// Softmax.
enum Map : int {
  kMapFocal,      // A^S_t[p]·fg[p] where a box covers p, -A^S_t[p]/n_bg elsewhere
  kMapAttention,  // h_S[p]: gradient of Σp |A^S_s - A^S_t| with respect to Σc |s[c,p]|
  kMapContextS,   // q_s[p]: softmax_p of the student's context logits
  kMapContextT,   // q_t[p]: softmax_p of the teacher's context logits
  kMaps
};

// Per channel, saved.
enum Stat : int {
  kStatAttention,      // A^C_t[c]
  kStatAttentionGrad,  // h_C[c]: gradient of Σc |A^C_s - A^C_t| with respect to Σp |s[c,p]|
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

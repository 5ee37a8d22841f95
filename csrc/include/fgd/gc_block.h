// The tensors of one level's pair of GcBlocks (12), in the order of the published state dict: what every list of them
// goes by. C channels, K hidden ones; a pair is two nets, 0 the student's and 1 the teacher's, of the same eight kinds.
//
//   context  ctx = Σp softmax_p(Wk·F + bk)·F
//   added    v = W2·relu(LN(W1·ctx + b1)·γ + β) + b2
#pragma once

#include "host_device.h"

namespace fgd {

enum GcTensor : int {
  kGcKeyS,       // conv_mask_s.weight  [C]  Wk
  kGcKeyBiasS,   // conv_mask_s.bias    [1]  bk
  kGcKeyT,       // conv_mask_t
  kGcKeyBiasT,   //
  kGcW1S,        // channel_add_conv_s.0.weight  [K][C]
  kGcB1S,        // channel_add_conv_s.0.bias    [K]
  kGcLnWeightS,  // channel_add_conv_s.1.weight  [K]  γ
  kGcLnBiasS,    // channel_add_conv_s.1.bias    [K]  β
  kGcW2S,        // channel_add_conv_s.3.weight  [C][K]
  kGcB2S,        // channel_add_conv_s.3.bias    [C]
  kGcW1T,        // channel_add_conv_t
  kGcB1T,        //
  kGcLnWeightT,  //
  kGcLnBiasT,    //
  kGcW2T,        //
  kGcB2T,        //
  kGcTensors
};

constexpr int kGcNets = 2;

// Where a net's tensor lies, by the student's of the same kind.
FGD_HOST_DEVICE constexpr int gc_tensor(int net, GcTensor of_student) {
  return of_student + (net == 0 ? 0 : of_student < kGcW1S ? kGcKeyT - kGcKeyS : kGcW1T - kGcW1S);
}

}  // namespace fgd

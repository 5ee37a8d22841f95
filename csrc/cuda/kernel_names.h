// Every kernel's name: fgd_<step>_<variant>. The host launches by (step, variant), the tests by name.
#pragma once

#include "params.h"

namespace fgd::cuda {

enum Step : int {
  kForward,
  kMerge,
  kFinish,
  kGcAdded,
  kTermsStep,
  kGcBackwardHidden,
  kGcBackwardContext,
  kBackward,
  kGcParameterGrads,
  kSteps
};

// Of the two passes over features: by layout and type, then the generic ones. All other steps: 0 for float, 1 for
// double.
enum TileVariant : int { kNchw = 0, kNhwc = 3, kGeneric = 6, kTileVariants = 8 };  // + DType for the first two

// X(step, params, name of the step, variant, name of the variant)
#define FGD_TILE_KERNELS(X, step, name)        \
  X(step, PyramidParams, name, 0, nchw_f32)    \
  X(step, PyramidParams, name, 1, nchw_f16)    \
  X(step, PyramidParams, name, 2, nchw_bf16)   \
  X(step, PyramidParams, name, 3, nhwc_f32)    \
  X(step, PyramidParams, name, 4, nhwc_f16)    \
  X(step, PyramidParams, name, 5, nhwc_bf16)   \
  X(step, PyramidParams, name, 6, generic_f32) \
  X(step, PyramidParams, name, 7, generic_f64)
#define FGD_SMALL_KERNELS(X, step, params, name) X(step, params, name, 0, f32) X(step, params, name, 1, f64)

#define FGD_ALL_KERNELS(X)                                                \
  FGD_TILE_KERNELS(X, kForward, forward)                                  \
  FGD_TILE_KERNELS(X, kBackward, backward)                                \
  FGD_SMALL_KERNELS(X, kMerge, PyramidParams, merge)                      \
  FGD_SMALL_KERNELS(X, kFinish, FinishParams, finish)                     \
  FGD_SMALL_KERNELS(X, kGcAdded, GcAddedParams, gc_added)                 \
  FGD_SMALL_KERNELS(X, kTermsStep, TermsParams, terms)                    \
  FGD_SMALL_KERNELS(X, kGcBackwardHidden, GcParams, gc_backward_hidden)   \
  FGD_SMALL_KERNELS(X, kGcBackwardContext, GcParams, gc_backward_context) \
  FGD_SMALL_KERNELS(X, kGcParameterGrads, GcParameterParams, gc_parameter_grads)

}  // namespace fgd::cuda

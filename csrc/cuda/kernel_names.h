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

// Of the two passes over features: by layout and types (+ 3·DType of the student + DType of the teacher), then the
// generic ones (+ 1 for double), then those of more than kFastChannels channels and one type (+ DType). All other
// steps: 0 for float, 1 for double.
enum TileVariant : int {
  kNchw = 0,
  kNhwc = 9,
  kGeneric = 18,
  kNchw512 = 20,
  kNchw1024 = 23,
  kNchw2048 = 26,
  kNhwcWide = 29,
  kTileVariants = 32
};

// X(step, params, name of the step, variant, name of the variant)
#define FGD_TILE_KERNELS(X, step, name)                 \
  X(step, PyramidParams, name, 0, nchw_f32)             \
  X(step, PyramidParams, name, 1, nchw_f32_f16)         \
  X(step, PyramidParams, name, 2, nchw_f32_bf16)        \
  X(step, PyramidParams, name, 3, nchw_f16_f32)         \
  X(step, PyramidParams, name, 4, nchw_f16)             \
  X(step, PyramidParams, name, 5, nchw_f16_bf16)        \
  X(step, PyramidParams, name, 6, nchw_bf16_f32)        \
  X(step, PyramidParams, name, 7, nchw_bf16_f16)        \
  X(step, PyramidParams, name, 8, nchw_bf16)            \
  X(step, PyramidParams, name, 9, nhwc_f32)             \
  X(step, PyramidParams, name, 10, nhwc_f32_f16)        \
  X(step, PyramidParams, name, 11, nhwc_f32_bf16)       \
  X(step, PyramidParams, name, 12, nhwc_f16_f32)        \
  X(step, PyramidParams, name, 13, nhwc_f16)            \
  X(step, PyramidParams, name, 14, nhwc_f16_bf16)       \
  X(step, PyramidParams, name, 15, nhwc_bf16_f32)       \
  X(step, PyramidParams, name, 16, nhwc_bf16_f16)       \
  X(step, PyramidParams, name, 17, nhwc_bf16)           \
  X(step, PyramidParams, name, 18, generic_f32)         \
  X(step, PyramidParams, name, 19, generic_f64)         \
  X(step, PyramidParams, name, 20, nchw_wide_512_f32)   \
  X(step, PyramidParams, name, 21, nchw_wide_512_f16)   \
  X(step, PyramidParams, name, 22, nchw_wide_512_bf16)  \
  X(step, PyramidParams, name, 23, nchw_wide_1024_f32)  \
  X(step, PyramidParams, name, 24, nchw_wide_1024_f16)  \
  X(step, PyramidParams, name, 25, nchw_wide_1024_bf16) \
  X(step, PyramidParams, name, 26, nchw_wide_2048_f32)  \
  X(step, PyramidParams, name, 27, nchw_wide_2048_f16)  \
  X(step, PyramidParams, name, 28, nchw_wide_2048_bf16) \
  X(step, PyramidParams, name, 29, nhwc_wide_f32)       \
  X(step, PyramidParams, name, 30, nhwc_wide_f16)       \
  X(step, PyramidParams, name, 31, nhwc_wide_bf16)
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

// Student and teacher of one type.
#include "backward_nhwc.cuh"

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, S, T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::nhwc::backward<S, T>(p);                                                                                \
  }
FGD_KERNEL(fgd_backward_nhwc_f32, float, float)
FGD_KERNEL(fgd_backward_nhwc_f16, __half, __half)
FGD_KERNEL(fgd_backward_nhwc_bf16, __nv_bfloat16, __nv_bfloat16)

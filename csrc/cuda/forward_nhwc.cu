// Student and teacher of one type.
#include "forward_nhwc.cuh"

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, S, T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::nhwc::forward<S, T>(p);                                                                                 \
  }
FGD_KERNEL(fgd_forward_nhwc_f32, float, float)
FGD_KERNEL(fgd_forward_nhwc_f16, __half, __half)
FGD_KERNEL(fgd_forward_nhwc_bf16, __nv_bfloat16, __nv_bfloat16)

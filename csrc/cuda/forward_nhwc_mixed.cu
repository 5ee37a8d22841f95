// Student and teacher of different types, in this order.
#include "forward_nhwc.cuh"

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, S, T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::nhwc::forward<S, T>(p);                                                                                 \
  }
FGD_KERNEL(fgd_forward_nhwc_f32_f16, float, __half)
FGD_KERNEL(fgd_forward_nhwc_f32_bf16, float, __nv_bfloat16)
FGD_KERNEL(fgd_forward_nhwc_f16_f32, __half, float)
FGD_KERNEL(fgd_forward_nhwc_f16_bf16, __half, __nv_bfloat16)
FGD_KERNEL(fgd_forward_nhwc_bf16_f32, __nv_bfloat16, float)
FGD_KERNEL(fgd_forward_nhwc_bf16_f16, __nv_bfloat16, __half)

// The only place where a kernel is launched.
#include <cuda_runtime.h>

#include "launch.h"

using namespace fgd::cuda;

#define FGD_DECLARE(step, params, name, variant, suffix) \
  extern "C" __global__ void fgd_##name##_##suffix(const __grid_constant__ params);
FGD_ALL_KERNELS(FGD_DECLARE)

static const void* address_of(int step, int variant) {
#define FGD_ADDRESS(s, params, name, v, suffix) \
  if (step == s && variant == v) return reinterpret_cast<const void*>(&fgd_##name##_##suffix);
  FGD_ALL_KERNELS(FGD_ADDRESS)
  return nullptr;
}

namespace fgd::cuda {

int launch(const Plan& plan, void* stream) {
  for (const Launch& l : plan.launches) {
    void* arguments[] = {const_cast<void*>(l.params)};
    const cudaError_t error = cudaLaunchKernel(address_of(l.step, l.variant), dim3(static_cast<unsigned>(l.blocks)),
                                               dim3(kThreads), arguments, 0, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace fgd::cuda

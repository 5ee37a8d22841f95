// csrc/cuda/operator.cpp for CPU tensors, as fgd_cuda_on_cpu::forward and ::backward: the very code that a GPU's
// tensors take, between PyTorch and the plan. What it asks CUDA for is answered here, and launches go to whom the test
// names.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

// A guard of no device; the CUDA library's registration becomes a function that nobody calls.
namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(int) {}
};
}  // namespace torch::stable::accelerator
#define DeviceGuard NoGuard
#pragma push_macro("STABLE_TORCH_LIBRARY_IMPL")
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, library) \
  [[maybe_unused]] static void never_called(torch::stable::detail::StableLibrary& library)
#include "operator.cpp"
#include "schema.h"
#pragma pop_macro("STABLE_TORCH_LIBRARY_IMPL")

static int multiprocessors = 4;
static void* const kStream = reinterpret_cast<void*>(0x5eed);
using Launcher = void (*)(const char* name, int64_t blocks, int threads, const void* params, int64_t bytes);
static Launcher launcher = nullptr;

extern "C" {
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = multiprocessors;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "a refused launch"; }
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = kStream;
  return AOTI_TORCH_SUCCESS;
}
void shim_set_launcher(Launcher to) { launcher = to; }
}

static const char* name_of(int step, int variant) {
#define FGD_NAME(s, params, name, v, suffix) \
  if (step == fgd::cuda::s && variant == v) return "fgd_" #name "_" #suffix;
  FGD_ALL_KERNELS(FGD_NAME)
  return "";
}

namespace fgd::cuda {

int launch(const Plan& plan, void* stream) {
  if (stream != kStream || !launcher) return cudaErrorInvalidValue;
  for (const Launch& l : plan.launches)
    launcher(name_of(l.step, l.variant), l.blocks, kThreads, l.params, static_cast<int64_t>(l.params_bytes));
  return cudaSuccess;
}

}  // namespace fgd::cuda

STABLE_TORCH_LIBRARY(fgd_cuda_on_cpu, m) {
  m.def(fgd::kForwardSchema);
  m.def(fgd::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(fgd_cuda_on_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&fgd::cuda::forward_op));
  m.impl("backward", TORCH_BOX(&fgd::cuda::backward_op));
}

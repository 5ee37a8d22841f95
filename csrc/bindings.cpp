// The operator's registration. Kernels for a device are registered beside them: cpu/operator.cpp, cuda/operator.cpp.
#include <torch/csrc/stable/library.h>

#include "schema.h"

STABLE_TORCH_LIBRARY(fgd_kernels, m) {
  m.def(fgd::kForwardSchema);
  m.def(fgd::kBackwardSchema);
}

#pragma once

#include "plan.h"

namespace fgd::cuda {

// Sends a plan's launches to a stream of the current device, in order. Returns a cudaError_t.
int launch(const Plan& plan, void* stream);

}  // namespace fgd::cuda

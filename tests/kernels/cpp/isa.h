// The pyramid tests run once per instruction set, which FGD_CPU_ISA names; without it, the best that is there.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "chunk.h"

namespace isa {

// What main returns where this machine lacks it (SKIP_RETURN_CODE in CMakeLists.txt), else 0.
inline int skipped() {
  const char *wanted = std::getenv("FGD_CPU_ISA"), *got = fgd::cpu::kernels().name;
  if (!wanted || std::strcmp(wanted, got) == 0) return 0;
  std::printf("this machine has no %s, but %s\n", wanted, got);
  return 77;
}

}  // namespace isa

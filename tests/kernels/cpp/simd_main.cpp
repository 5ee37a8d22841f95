// Runs test_simd.cpp if this machine has its instruction set. A file of its own, compiled for any machine.
#include <cstdio>
#include <cstring>

#include "instruction_set.h"

int run_simd_tests();

static bool supported(const char* name) {
  const fgd::cpu::InstructionSet machine = fgd::cpu::machine_instruction_set();
  if (std::strcmp(name, "avx512") == 0) return machine >= fgd::cpu::kAvx512;
  if (std::strcmp(name, "avx2") == 0) return machine >= fgd::cpu::kAvx2;
  return std::strcmp(name, "baseline") == 0;
}

int main() {
  constexpr int kSkipped = 77;  // as CMakeLists.txt tells CTest
  if (supported(FGD_ISA_NAME)) return run_simd_tests();
  std::printf("this machine has no %s\n", FGD_ISA_NAME);
  return kSkipped;
}

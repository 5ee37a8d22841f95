// The widest instruction set that this machine runs, of those that the kernels are compiled for.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fgd::cpu {

enum InstructionSet : int { kBaseline, kAvx2, kAvx512 };  // each contains the one before

inline InstructionSet machine_instruction_set() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // F16C from cpuid: GCC 10 and Clang 14 have no name for it. That the system saves the registers comes with "avx2".
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
  if (!f16c || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kBaseline;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return kAvx512;
  return kAvx2;
#else
  return kBaseline;
#endif
}

}  // namespace fgd::cpu

// Runs test_simd.cpp if this machine has its instruction set. A file of its own, compiled for any machine.
#include <cstdio>
#include <cstring>

int run_simd_tests();

static bool supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (std::strcmp(name, "avx2") == 0) return avx2;
  if (std::strcmp(name, "avx512") == 0)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return std::strcmp(name, "baseline") == 0;
}

int main() {
  constexpr int kSkipped = 77;  // as CMakeLists.txt tells CTest
  if (supported(FGD_ISA_NAME)) return run_simd_tests();
  std::printf("this machine has no %s\n", FGD_ISA_NAME);
  return kSkipped;
}

// Which instruction set's kernels run here.
#include <cstdlib>
#include <cstring>

#include "chunk.h"
#include "instruction_set.h"

namespace fgd::cpu {

namespace baseline {
KernelTable make_table();
}
#if defined(FGD_HAS_X86_VARIANTS)
namespace avx2 {
KernelTable make_table();
}
namespace avx512 {
KernelTable make_table();
}
#endif

static KernelTable choose() {
#if defined(FGD_HAS_X86_VARIANTS)
  const char* wanted = std::getenv("FGD_CPU_ISA");  // baseline, avx2 or avx512: never above what the machine has
  const bool up_to_baseline = wanted && std::strcmp(wanted, "baseline") == 0;
  const bool up_to_avx2 = wanted && std::strcmp(wanted, "avx2") == 0;
  const InstructionSet machine = machine_instruction_set();
  if (machine >= kAvx512 && !up_to_baseline && !up_to_avx2) return avx512::make_table();
  if (machine >= kAvx2 && !up_to_baseline) return avx2::make_table();
#endif
  return baseline::make_table();
}

const KernelTable& kernels() {
  static const KernelTable table = choose();
  return table;
}

}  // namespace fgd::cpu

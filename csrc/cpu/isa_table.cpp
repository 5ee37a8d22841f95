// The kernels of one instruction set. CMake compiles this file several times, each time with other -m flags and
// another FGD_ISA (baseline, avx2, avx512); dispatch.cpp chooses among the tables at run time.
#include "backward.h"
#include "chunk.h"
#include "forward_nchw.h"
#include "forward_nhwc.h"
#include "gc_block.h"
#include "image.h"

#define FGD_STRING_(x) #x
#define FGD_STRING(x) FGD_STRING_(x)

namespace fgd::cpu::FGD_ISA {

template <class A, class S, class T>
void fill(ChunkKernels<A>* layouts) {
  layouts[kPixelsDense] = {forward_nchw<A, S, T>, backward_nchw<A, S, T>};
  layouts[kChannelsDense] = {forward_nhwc<A, S, T>, backward_nhwc<A, S, T>};
}

template <class S>
void fill_teachers(ChunkKernels<float> (*teachers)[kLayouts]) {
  fill<float, S, float>(teachers[kFloat32]);
  fill<float, S, Half>(teachers[kFloat16]);
  fill<float, S, BFloat16>(teachers[kBFloat16]);
}

KernelTable make_table() {
  KernelTable table{};
  table.name = FGD_STRING(FGD_ISA);
  fill_teachers<float>(table.narrow[kFloat32]);
  fill_teachers<Half>(table.narrow[kFloat16]);
  fill_teachers<BFloat16>(table.narrow[kBFloat16]);
  fill<double, double, double>(table.wide);
  table.gc_f32 = {transform<float>, transform_backward<float>};
  table.gc_f64 = {transform<double>, transform_backward<double>};
  table.image_f32 = {merge_image<float>};
  table.image_f64 = {merge_image<double>};
  return table;
}

}  // namespace fgd::cpu::FGD_ISA

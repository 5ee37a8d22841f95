// The operator's schema. Kernels for a device are registered beside them: cpu/operator.cpp, cuda/operator.cpp.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fgd_kernels, m) {
  m.def(
      "forward(Tensor[] student, Tensor[] teacher, Tensor box_values, Tensor box_offsets, Tensor image_sizes, "
      "Tensor[] gc_block, float[] weights, float spatial_temperature, float channel_temperature) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "backward(Tensor grads, Tensor[] student, Tensor[] teacher, Tensor box_values, Tensor box_offsets, "
      "Tensor image_sizes, Tensor[] gc_block, float[] weights, float spatial_temperature, "
      "float channel_temperature, Tensor maps, Tensor stats, bool need_student, bool need_gc_block) "
      "-> (Tensor[], Tensor[])");
}

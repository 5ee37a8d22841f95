// The operator's two schemas, for every namespace that it is registered in.
#pragma once

namespace fgd {

constexpr const char* kForwardSchema =
    "forward(Tensor[] student, Tensor[] teacher, Tensor box_values, Tensor box_offsets, Tensor image_sizes, "
    "Tensor[] gc_block, float[] weights, float spatial_temperature, float channel_temperature, "
    "Tensor? foreground=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
constexpr const char* kBackwardSchema =
    "backward(Tensor grads, Tensor[] student, Tensor[] teacher, Tensor box_values, Tensor box_offsets, "
    "Tensor image_sizes, Tensor[] gc_block, float[] weights, float spatial_temperature, "
    "float channel_temperature, Tensor maps, Tensor stats, bool need_student, bool need_gc_block) "
    "-> (Tensor[], Tensor[])";

}  // namespace fgd

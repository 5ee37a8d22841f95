// Checks of the operator's arguments that every device needs before a pointer is touched. Python checks first and
// speaks better; these make a direct call of the operator safe.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "fgd/gc_block.h"
#include "fgd/layout.h"

namespace fgd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

inline ScalarType accumulator(const Tensors& student) {
  return student[0].scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::Half:
      return kFloat16;
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Double:
      return kFloat64;
    default:
      STD_TORCH_CHECK(false, "features: expected float16, bfloat16, float32 or float64");
  }
  return kFloat32;
}

// ---- a tensor's layout: asked here, once, for whoever walks it ----------------------------------------------------

// NCHW, or a slice of it: all pixels of a channel in a row. Of a dimension with one element any stride will do.
inline bool pixels_dense(const Tensor& t) {
  return (t.size(3) == 1 || t.stride(3) == 1) && (t.size(2) == 1 || t.stride(2) == t.size(3));
}

// channels_last, or a slice of it: all channels of a pixel in a row, pixels at one distance, and side by side (not one
// pixel expanded to many: a gradient has no such layout).
inline bool channels_dense(const Tensor& t) {
  const int64_t pixel = t.size(3) > 1 ? t.stride(3) : t.stride(2);
  return (t.size(1) == 1 || t.stride(1) == 1) && (t.size(2) * t.size(3) == 1 || pixel >= t.size(1)) &&
         (t.size(2) == 1 || t.size(3) == 1 || t.stride(2) == t.size(3) * t.stride(3));
}

inline Layout layout_of(const Tensor& student, const Tensor& teacher, size_t level) {
  if (pixels_dense(student) && pixels_dense(teacher)) return kPixelsDense;
  STD_TORCH_CHECK(channels_dense(student) && channels_dense(teacher), "level ", level,
                  ": expected student and teacher both contiguous or both channels_last");
  return kChannelsDense;
}

// In elements: element (n, c, p) lies at n·image + c·channel + p·pixel.
struct Strides {
  int64_t image, channel, pixel;
};

inline Strides strides_of(const Tensor& t, Layout layout) {
  if (layout == kPixelsDense) return {t.stride(0), t.stride(1), 1};
  return {t.stride(0), 1, t.size(3) > 1 ? t.stride(3) : t.stride(2)};
}

// Of a gradient, which PyTorch laid out like its features.
inline Strides gradient_strides(const Tensor& grad, Layout layout, size_t level) {
  STD_TORCH_CHECK(layout == kPixelsDense ? pixels_dense(grad) : channels_dense(grad), "student[", level,
                  "]: expected strides that its gradient can have");
  return strides_of(grad, layout);
}

// ---- checks ---------------------------------------------------------------------------------------------------------

inline void check_feature(const Tensor& f, const Tensor& like, const Tensor& shape, const char* name, size_t level) {
  STD_TORCH_CHECK(f.dim() == 4 && shape.dim() == 4, name, "[", level, "]: expected 4 dimensions, got ", f.dim());
  for (int d = 0; d < 4; ++d)
    STD_TORCH_CHECK(f.size(d) == shape.size(d), name, "[", level, "]: expected size ", shape.size(d), " in dimension ",
                    d, ", got ", f.size(d));
  STD_TORCH_CHECK(f.size(0) == like.size(0), name, "[", level, "]: expected ", like.size(0), " images, got ",
                  f.size(0));
  STD_TORCH_CHECK(f.size(1) >= 1 && f.size(1) <= kMaxChannels && f.size(2) >= 1 && f.size(3) >= 1 &&
                      f.size(2) * f.size(3) < (int64_t{1} << 30),
                  name, "[", level, "]: expected 1 to ", kMaxChannels, " channels and 1 <= H·W < 2^30");
  STD_TORCH_CHECK(f.scalar_type() == like.scalar_type(), name, "[", level, "]: expected one dtype for all levels");
  STD_TORCH_CHECK(f.device() == like.device(), name, "[", level, "]: expected one device for all levels");
}

// The hidden channels of a level's two nets.
inline int gc_hidden(const Tensors& gc, size_t level, int net) {
  return static_cast<int>(gc[level * kGcTensors + gc_tensor(net, kGcB1S)].numel());
}

// A level's pair of GcBlocks: only sizes and types matter here.
inline void check_gc_block(const Tensors& gc, size_t level, int64_t channels, ScalarType type) {
  for (int net = 0; net < kGcNets; ++net) {
    const int64_t hidden = gc_hidden(gc, level, net), matrix = hidden * channels;
    const struct {
      GcTensor of_student;
      int64_t size;
    } expected[] = {{kGcKeyS, channels},    {kGcKeyBiasS, 1},     {kGcW1S, matrix}, {kGcB1S, hidden},
                    {kGcLnWeightS, hidden}, {kGcLnBiasS, hidden}, {kGcW2S, matrix}, {kGcB2S, channels}};
    for (const auto& e : expected) {
      const size_t i = level * kGcTensors + gc_tensor(net, e.of_student);
      STD_TORCH_CHECK(gc[i].numel() == e.size, "gc_block[", i, "]: expected ", e.size, " elements, got ",
                      gc[i].numel());
      STD_TORCH_CHECK(gc[i].scalar_type() == type && gc[i].is_contiguous(), "gc_block[", i,
                      "]: expected a contiguous tensor of the sums' dtype (float32, or float64 for float64 features)");
    }
  }
}

inline void check_forward(const Tensors& student, const Tensors& teacher, const Tensor& boxes, const Tensor& offsets,
                          const Tensor& sizes, const Tensors& gc, const std::vector<double>& weights) {
  STD_TORCH_CHECK(!student.empty() && student.size() == teacher.size(), "expected one teacher level for each of ",
                  student.size(), " >= 1 student levels, got ", teacher.size());
  const int64_t images = student[0].dim() == 4 ? student[0].size(0) : 0;
  const ScalarType type = accumulator(student);
  STD_TORCH_CHECK((teacher[0].scalar_type() == ScalarType::Double) == (type == ScalarType::Double),
                  "expected float64 student and teacher features together");
  STD_TORCH_CHECK(gc.empty() || gc.size() == student.size() * kGcTensors, "gc_block: expected ",
                  student.size() * kGcTensors, " tensors or none, got ", gc.size());
  STD_TORCH_CHECK(weights.size() == student.size() * kTerms, "weights: expected ", student.size() * kTerms, ", got ",
                  weights.size());
  for (size_t level = 0; level < student.size(); ++level) {
    check_feature(student[level], student[0], student[level], "student", level);
    check_feature(teacher[level], teacher[0], student[level], "teacher", level);
    STD_TORCH_CHECK(teacher[level].device() == student[0].device(), "teacher: expected the student's device");
    if (!gc.empty()) check_gc_block(gc, level, student[level].size(1), type);
  }
  STD_TORCH_CHECK(
      boxes.dim() == 2 && boxes.size(1) == 4 && boxes.scalar_type() == ScalarType::Float && boxes.is_contiguous(),
      "box_values: expected a contiguous float32 tensor (M, 4)");
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) == images + 1 && offsets.scalar_type() == ScalarType::Int &&
                      offsets.is_contiguous(),
                  "box_offsets: expected a contiguous int32 tensor (", images + 1, ",)");
  STD_TORCH_CHECK(sizes.dim() == 2 && sizes.size(0) == images && sizes.size(1) == 2 &&
                      sizes.scalar_type() == ScalarType::Float && sizes.is_contiguous(),
                  "image_sizes: expected a contiguous float32 tensor (", images, ", 2)");
  for (const Tensor* t : {&boxes, &offsets, &sizes})
    STD_TORCH_CHECK(t->device() == student[0].device(), "boxes: expected the features' device");
}

// M·S of (2) and (3) where it does not come from boxes: every level's numbers, one level after another.
inline void check_foreground(const std::optional<Tensor>& foreground, const Tensors& student) {
  if (!foreground) return;
  int64_t size = 0;
  for (const Tensor& s : student) size += s.size(0) * s.size(2) * s.size(3);
  STD_TORCH_CHECK(foreground->dim() == 1 && foreground->size(0) == size &&
                      foreground->scalar_type() == ScalarType::Float && foreground->is_contiguous() &&
                      foreground->device() == student[0].device(),
                  "foreground: expected a contiguous float32 tensor (", size, ",) on the features' device");
}

// What a backward pass gets beside the forward's arguments; the sizes are those of what the forward pass saved.
inline void check_backward(const Tensor& upstream, const Tensor& maps, const Tensor& stats, const Tensors& student,
                           int64_t maps_size, int64_t stats_size) {
  for (const Tensor* t : {&upstream, &maps, &stats})
    STD_TORCH_CHECK(
        t->scalar_type() == accumulator(student) && t->is_contiguous() && t->device() == student[0].device(),
        "grads, maps, stats: expected the forward's dtype and device");
  STD_TORCH_CHECK(upstream.numel() == kTerms, "grads: expected ", int{kTerms}, " numbers, got ", upstream.numel());
  STD_TORCH_CHECK(maps.numel() == maps_size && stats.numel() == stats_size,
                  "maps, stats: expected what forward saved for these features");
}

}  // namespace fgd

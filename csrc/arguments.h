// Checks of the operator's arguments that every device needs before a pointer is touched. Python checks first and
// speaks better; these make a direct call of the operator safe.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "fgd/layout.h"

namespace fgd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

constexpr int kGcBlockSize = 16;
constexpr int64_t kMaxChannels = 2048;

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

// One GcBlock's tensors, order and shapes as in reference.gc_block_pair: only sizes and types matter here.
inline void check_gc_block(const Tensors& gc, size_t level, int64_t channels, ScalarType type) {
  for (int i = 0; i < kGcBlockSize; ++i) {
    const Tensor& t = gc[level * kGcBlockSize + i];
    const int64_t hidden = gc[level * kGcBlockSize + (i < 10 ? 5 : 11)].numel();
    const int64_t transform[] = {hidden * channels, hidden, hidden, hidden, hidden * channels, channels};
    const int64_t expected = i < 4 ? (i % 2 ? 1 : channels) : transform[(i - 4) % 6];
    STD_TORCH_CHECK(t.numel() == expected, "gc_block[", level * kGcBlockSize + i, "]: expected ", expected,
                    " elements, got ", t.numel());
    STD_TORCH_CHECK(t.scalar_type() == type && t.is_contiguous(), "gc_block[", level * kGcBlockSize + i,
                    "]: expected a contiguous tensor of the sums' dtype (float32, or float64 for float64 features)");
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
  STD_TORCH_CHECK(gc.empty() || gc.size() == student.size() * kGcBlockSize, "gc_block: expected ",
                  student.size() * kGcBlockSize, " tensors or none, got ", gc.size());
  STD_TORCH_CHECK(weights.size() == student.size() * 4, "weights: expected ", student.size() * 4, ", got ",
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

}  // namespace fgd

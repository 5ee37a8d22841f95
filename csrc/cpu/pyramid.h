// The loss of a whole pyramid on the CPU: what goes in, what comes out, and the cut into independent tasks.
// Nothing here knows PyTorch; bindings.cpp and the C++ tests call it alike.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "chunk.h"

namespace fgd::cpu {

struct LevelFeatures {
  const void *student, *teacher;           // image 0
  int64_t student_image, teacher_image;    // strides between images, in elements
  int64_t student_channel, student_pixel;  // strides within one
  int64_t teacher_channel, teacher_pixel;
  int channels, height, width;
  Layout layout;
  int pixels() const { return height * width; }
  int chunks() const { return (pixels() + kMaxChunkPixels - 1) / kMaxChunkPixels; }
};

// One level's GcBlock tensors in the order of the published state dict: conv_mask_s.weight and .bias, conv_mask_t's,
// then six of channel_add_conv_s and six of channel_add_conv_t (0, 1 and 3: weight, bias).
constexpr int kGcTensors = 16;

struct Pyramid {
  int images;
  DType student_type, teacher_type;
  std::vector<LevelFeatures> levels;
  const float* boxes;                 // [M][4]
  const int32_t* box_offsets;         // [N + 1]
  const float* image_sizes;           // [N][2]
  std::vector<const void*> gc_block;  // [levels][kGcTensors], or empty
  std::vector<int> gc_hidden;         // [levels][2], or empty
  std::vector<double> weights;        // [levels][kTerms]
  double spatial_temperature, channel_temperature;

  // Where image n of level l begins in the saved buffers.
  int64_t maps_offset(int level, int image) const;
  int64_t stats_offset(int level, int image) const;
};

// Runs task(i, scratch) for every i < count, on as many threads as it likes; each has its own scratch memory.
using Task = std::function<void(int64_t, void*)>;
using Executor = std::function<void(int64_t count, size_t scratch_bytes, const Task&)>;

// Results of the forward pass: terms [levels][kTerms] weighted and averaged over images, maps and stats (layout.h).
template <class A>
void forward(const Pyramid& pyramid, const Executor& run, A* terms, A* maps, A* stats);

struct LevelGradient {
  void* data;  // image 0
  int64_t image, channel, pixel;
};

// grads: [kTerms], upstream. student: one a level, or empty. gc_block: [levels][kGcTensors] of A*, or empty.
template <class A>
void backward(const Pyramid& pyramid, const Executor& run, const A* grads, const A* maps, const A* stats,
              const std::vector<LevelGradient>& student, const std::vector<void*>& gc_block);

// The tasks of a pass: every chunk of every image of every level.
struct ChunkTask {
  int level, image, chunk;
  int64_t index;  // of this (level, image)'s first chunk among all
};
std::vector<ChunkTask> chunk_tasks(const Pyramid& pyramid);

// Kernels and GcBlock parameters with sums in A.
template <class A>
const ChunkKernels<A>& chunk_kernels(const Pyramid& pyramid, int level);
template <class A>
const GcKernels<A>& gc_kernels();
template <class A>
const ImageKernels<A>& image_kernels();

template <class A>
GcTransform<A> gc_transform(const Pyramid& p, int level, bool teacher) {
  const void* const* t = &p.gc_block[level * kGcTensors + (teacher ? 10 : 4)];
  auto at = [&](int i) { return static_cast<const A*>(t[i]); };
  return {p.images, p.levels[level].channels, p.gc_hidden[2 * level + teacher], at(0), at(1), at(2), at(3), at(4),
          at(5)};
}

// A pointer to Wk, or to zeros where there is no GcBlock.
template <class A>
const A* gc_key(const Pyramid& p, int level, bool teacher, const std::vector<A>& zeros) {
  return p.gc_block.empty() ? zeros.data() : static_cast<const A*>(p.gc_block[level * kGcTensors + (teacher ? 2 : 0)]);
}

int largest_channels(const Pyramid& pyramid);
int element_size(DType type);

inline const void* offset(const void* base, int64_t elements, int size) {
  return static_cast<const char*>(base) + elements * size;
}

}  // namespace fgd::cpu

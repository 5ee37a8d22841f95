// The loss of a whole pyramid on the CPU: what goes in, what comes out, and the cut into independent tasks.
// Nothing here knows PyTorch; operator.cpp and the C++ tests call it alike.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "chunk.h"
#include "fgd/gc_block.h"

namespace fgd::cpu {

struct LevelFeatures {
  const void *student, *teacher;           // image 0
  int64_t student_image, teacher_image;    // strides between images, in elements
  int64_t student_channel, student_pixel;  // strides within one
  int64_t teacher_channel, teacher_pixel;
  int channels, height, width;
  Layout layout;
  int pixels() const { return height * width; }
  int chunks() const { return (pixels() + kChunkPixels - 1) / kChunkPixels; }
};

struct Pyramid {
  int images;
  DType student_type, teacher_type;
  std::vector<LevelFeatures> levels;
  const float* boxes;                 // [M][4]
  const int32_t* box_offsets;         // [N + 1]
  const float* image_sizes;           // [N][2]
  std::vector<const void*> gc_block;  // [levels][kGcTensors], or empty
  std::vector<int> gc_hidden;         // [levels][kGcNets], or empty
  std::vector<double> weights;        // [levels][kTerms]
  double spatial_temperature, channel_temperature;
  const float* foreground = nullptr;  // [levels][N][P] in place of boxes, or none

  // Where image n of level l begins in `foreground`, and in the saved buffers.
  int64_t foreground_offset(int level, int image) const;
  int64_t maps_offset(int level, int image) const;
  int64_t stats_offset(int level, int image) const;
  // Numbers in them.
  int64_t maps_size() const;
  int64_t stats_size() const;
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

// upstream: [kTerms] gradients of the four sums. student: one a level, or empty. gc_block: [levels][kGcTensors] of A*,
// or empty.
template <class A>
void backward(const Pyramid& pyramid, const Executor& run, const A* upstream, const A* maps, const A* stats,
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
GcTransform<A> gc_transform(const Pyramid& p, int level, int net) {
  auto at = [&](GcTensor of_student) {
    return static_cast<const A*>(p.gc_block[level * kGcTensors + gc_tensor(net, of_student)]);
  };
  return {p.images,
          p.levels[level].channels,
          p.gc_hidden[kGcNets * level + net],
          at(kGcW1S),
          at(kGcB1S),
          at(kGcLnWeightS),
          at(kGcLnBiasS),
          at(kGcW2S),
          at(kGcB2S)};
}

// A pointer to Wk, or to zeros where there is no GcBlock.
template <class A>
const A* gc_key(const Pyramid& p, int level, int net, const std::vector<A>& zeros) {
  return p.gc_block.empty() ? zeros.data()
                            : static_cast<const A*>(p.gc_block[level * kGcTensors + gc_tensor(net, kGcKeyS)]);
}

int largest_channels(const Pyramid& pyramid);
int element_size(DType type);

inline const void* offset(const void* base, int64_t elements, int size) {
  return static_cast<const char*>(base) + elements * size;
}

}  // namespace fgd::cpu

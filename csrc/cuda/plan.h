// What a pass launches: kernels, grids and parameters, worked out on the host from shapes and pointers. Nothing here
// needs CUDA or PyTorch, so that tests run the very same plans without either.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <vector>

#include "kernel_names.h"

namespace fgd::cuda {

struct LevelInput {
  Features student, teacher;
  Layout layout;
  const float* mask;  // [N][P] weights of the foreground in place of the boxes', or null
  int channels, height, width;
  double weights[kTerms];
  const void* gc_block[kGcTensors];
  int gc_hidden[kGcNets];
  int64_t pixels() const { return int64_t{height} * width; }
};

struct Pyramid {
  int images;
  DType student_type, teacher_type;
  std::vector<LevelInput> levels;
  const float* boxes;  // as in PyramidParams
  int box_count;
  const int32_t* box_offsets;
  const float* image_sizes;
  bool has_gc_block;
  double spatial_temperature, channel_temperature;
  bool wide() const { return student_type == kFloat64; }  // sums in double
};

struct ForwardOutput {
  void *terms, *maps, *stats;  // layout.h
  void* sums[kTerms];
};

struct BackwardOutput {
  std::vector<Features> student;  // one a level, or empty
  std::vector<void*> gc_block;    // kGcTensors a level, or empty
};

struct Launch {
  int step, variant;
  int64_t blocks;  // of kThreads
  const void* params;
  size_t params_bytes;
};

// Owns the parameters that its launches point to; they are copied at the launch.
struct Plan {
  std::vector<Launch> launches;
  std::list<PyramidParams> pyramids;
  std::list<GcParams> gc_blocks;
  std::list<FinishParams> finishes;
  std::list<GcAddedParams> gc_added;
  std::list<GcParameterParams> gc_parameters;
  std::list<TermsParams> terms;
  size_t scratch_bytes;
  Plan() = default;
  Plan(Plan&&) = default;
  Plan(const Plan&) = delete;
};

// What is aligned to how many bytes, of features that begin at data: 16 means that a kernel may use whole packets. In
// channels_last that wants C to fill them, too.
int alignment_of(const Features& f, int channels, DType type, Layout layout);

// `scratch` must hold plan.scratch_bytes bytes, aligned to 256, for as long as the launches run; with null, nothing but
// that size is right. `multiprocessors` of the device decides how images are cut into chunks. images > 0.
Plan plan_forward(const Pyramid& pyramid, const ForwardOutput& out, void* scratch, int multiprocessors);
Plan plan_backward(const Pyramid& pyramid, const void* upstream, const void* maps, const void* stats,
                   const BackwardOutput& out, void* scratch, int multiprocessors);

int64_t maps_size(const Pyramid& pyramid);  // numbers
int64_t stats_size(const Pyramid& pyramid);

}  // namespace fgd::cuda

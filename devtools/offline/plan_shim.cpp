// The launch plans of csrc/cuda/plan.cpp for Python: plain structs in, launches with their parameters' bytes out.
#include <algorithm>
#include <cstring>

#include "plan.h"

using namespace fgd::cuda;
using fgd::DType;
using fgd::kGcTensors;
using fgd::Layout;

struct ShimFeatures {
  void* data;
  int64_t image, channel, pixel;
};

struct ShimLevel {
  ShimFeatures student, teacher, grad;
  const float* mask;
  const void* gc_block[kGcTensors];
  void* gc_grads[kGcTensors];
  double weights[fgd::kTerms];
  int gc_hidden[fgd::kGcNets];
  int layout, channels, height, width;
};

struct ShimPyramid {
  const ShimLevel* levels;
  const float* boxes;
  const int32_t* box_offsets;
  const float* image_sizes;
  const void *grads, *maps, *stats, *terms;
  void* sums[fgd::kTerms];
  double spatial_temperature, channel_temperature;
  int level_count, images, student_type, teacher_type, box_count;
  int has_gc_block, need_student, need_gc_block;
};

struct ShimLaunch {
  char name[64];
  int64_t blocks;
  int threads, params_bytes;
  unsigned char params[4096];
};

struct ShimChunks {
  int pixels, chunk_pixels, chunks, alignment;
};

static const char* name_of(int step, int variant) {
#define FGD_NAME(s, params, name, v, suffix) \
  if (step == s && variant == v) return "fgd_" #name "_" #suffix;
  FGD_ALL_KERNELS(FGD_NAME)
  return "";
}

static Features features_of(const ShimFeatures& f, int channels, int type, Layout layout) {
  Features out{f.data, f.image, f.channel, f.pixel, 0, 0};
  out.alignment = alignment_of(out, channels, static_cast<DType>(type), layout);
  return out;
}

static Pyramid pyramid_of(const ShimPyramid& in) {
  Pyramid p{};
  p.images = in.images;
  p.student_type = static_cast<DType>(in.student_type);
  p.teacher_type = static_cast<DType>(in.teacher_type);
  p.boxes = in.boxes;
  p.box_count = in.box_count;
  p.box_offsets = in.box_offsets;
  p.image_sizes = in.image_sizes;
  p.has_gc_block = in.has_gc_block != 0;
  p.spatial_temperature = in.spatial_temperature;
  p.channel_temperature = in.channel_temperature;
  for (int l = 0; l < in.level_count; ++l) {
    const ShimLevel& from = in.levels[l];
    LevelInput level{};
    level.layout = static_cast<Layout>(from.layout);
    level.student = features_of(from.student, from.channels, in.student_type, level.layout);
    level.teacher = features_of(from.teacher, from.channels, in.teacher_type, level.layout);
    level.mask = from.mask;
    level.channels = from.channels;
    level.height = from.height;
    level.width = from.width;
    std::memcpy(level.weights, from.weights, sizeof(level.weights));
    std::memcpy(level.gc_block, from.gc_block, sizeof(level.gc_block));
    std::memcpy(level.gc_hidden, from.gc_hidden, sizeof(level.gc_hidden));
    p.levels.push_back(level);
  }
  return p;
}

static Plan plan_of(const ShimPyramid& in, int backward, void* scratch, int multiprocessors) {
  const Pyramid p = pyramid_of(in);
  if (!backward) {
    ForwardOutput out{const_cast<void*>(in.terms), const_cast<void*>(in.maps), const_cast<void*>(in.stats), {}};
    std::memcpy(out.sums, in.sums, sizeof(out.sums));
    return plan_forward(p, out, scratch, multiprocessors);
  }
  BackwardOutput out;
  for (int l = 0; l < in.level_count; ++l) {
    const ShimLevel& level = in.levels[l];
    if (in.need_student)
      out.student.push_back(
          features_of(level.grad, level.channels, in.student_type, static_cast<Layout>(level.layout)));
    for (int i = 0; in.need_gc_block && i < kGcTensors; ++i) out.gc_block.push_back(level.gc_grads[i]);
  }
  return plan_backward(p, in.grads, in.maps, in.stats, out, scratch, multiprocessors);
}

extern "C" {

int64_t shim_maps_size(const ShimPyramid* in) { return maps_size(pyramid_of(*in)); }
int64_t shim_stats_size(const ShimPyramid* in) { return stats_size(pyramid_of(*in)); }

// Up to kMaxLevels levels in the order in which their blocks start.
void shim_chunks(const ShimPyramid* in, int backward, int multiprocessors, ShimChunks* out) {
  const Plan plan = plan_of(*in, backward, nullptr, multiprocessors);
  const PyramidParams& params = plan.pyramids.front();
  for (int l = 0; l < params.level_count; ++l) {
    const Level& level = params.levels[l];
    out[l] = {level.pixels, level.chunk_pixels, level.chunks,
              std::min(level.student.alignment, level.teacher.alignment)};
  }
}

// Fills up to `capacity` launches; returns how many there are.
int shim_plan(const ShimPyramid* in, int backward, void* scratch, int multiprocessors, ShimLaunch* out, int capacity,
              int64_t* scratch_bytes) {
  const Plan plan = plan_of(*in, backward, scratch, multiprocessors);
  *scratch_bytes = static_cast<int64_t>(plan.scratch_bytes);
  int count = 0;
  for (const Launch& launch : plan.launches) {
    if (count < capacity) {
      ShimLaunch& to = out[count];
      std::strncpy(to.name, name_of(launch.step, launch.variant), sizeof(to.name) - 1);
      to.blocks = launch.blocks;
      to.threads = kThreads;
      to.params_bytes = static_cast<int>(launch.params_bytes);
      std::memcpy(to.params, launch.params, launch.params_bytes);
    }
    ++count;
  }
  return count;
}
}

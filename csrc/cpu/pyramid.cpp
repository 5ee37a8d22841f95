#include "pyramid.h"

#include <algorithm>

namespace fgd::cpu {

int64_t Pyramid::foreground_offset(int level, int image) const {
  int64_t pixels = 0;
  for (int l = 0; l < level; ++l) pixels += levels[l].pixels();
  return pixels * images + int64_t{image} * levels[level].pixels();
}

int64_t Pyramid::maps_offset(int level, int image) const { return kMaps * foreground_offset(level, image); }

int64_t Pyramid::stats_offset(int level, int image) const {
  int64_t channels = 0;
  for (int l = 0; l < level; ++l) channels += levels[l].channels;
  return kStats * (channels * images + int64_t{image} * levels[level].channels);
}

int64_t Pyramid::maps_size() const {
  int64_t pixels = 0;
  for (const LevelFeatures& level : levels) pixels += level.pixels();
  return kMaps * images * pixels;
}

int64_t Pyramid::stats_size() const {
  int64_t channels = 0;
  for (const LevelFeatures& level : levels) channels += level.channels;
  return kStats * images * channels;
}

std::vector<ChunkTask> chunk_tasks(const Pyramid& pyramid) {
  std::vector<ChunkTask> tasks;
  for (int level = 0; level < static_cast<int>(pyramid.levels.size()); ++level)
    for (int image = 0; image < pyramid.images; ++image) {
      const int64_t first = static_cast<int64_t>(tasks.size());
      for (int chunk = 0; chunk < pyramid.levels[level].chunks(); ++chunk)
        tasks.push_back({level, image, chunk, first});
    }
  return tasks;
}

template <>
const ChunkKernels<float>& chunk_kernels<float>(const Pyramid& pyramid, int level) {
  return kernels().narrow[pyramid.student_type][pyramid.teacher_type][pyramid.levels[level].layout];
}
template <>
const ChunkKernels<double>& chunk_kernels<double>(const Pyramid& pyramid, int level) {
  return kernels().wide[pyramid.levels[level].layout];
}
template <>
const GcKernels<float>& gc_kernels<float>() {
  return kernels().gc_f32;
}
template <>
const GcKernels<double>& gc_kernels<double>() {
  return kernels().gc_f64;
}
template <>
const ImageKernels<float>& image_kernels<float>() {
  return kernels().image_f32;
}
template <>
const ImageKernels<double>& image_kernels<double>() {
  return kernels().image_f64;
}

int largest_channels(const Pyramid& pyramid) {
  int channels = 1;
  for (const LevelFeatures& level : pyramid.levels) channels = std::max(channels, level.channels);
  return channels;
}

int element_size(DType type) { return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2; }

}  // namespace fgd::cpu

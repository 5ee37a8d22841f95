// Forward: chunks (the one pass over the features), then images (merge), then GcBlocks (one task a level and net).
#include <algorithm>

#include "fgd/mask.h"
#include "pyramid.h"

namespace fgd::cpu {

// fg (2), (3) on the pixels first .. first + count of a map, then zeros up to a multiple of 16: as given, or of boxes.
template <class A>
static void rasterise(const Pyramid& p, int level, int image, int first, int count, A* mask) {
  const int H = p.levels[level].height, W = p.levels[level].width, last = first + count - 1;
  std::fill(mask, mask + (count + 15) / 16 * 16, A{0});
  if (p.foreground != nullptr) {
    const float* from = p.foreground + p.foreground_offset(level, image) + first;
    std::copy(from, from + count, mask);
    return;
  }
  for (int box = p.box_offsets[image]; box < p.box_offsets[image + 1]; ++box) {
    const float* size = p.image_sizes + 2 * image;
    const Rectangle r = box_rectangle(p.boxes + 4 * box, size[0], size[1], H, W);
    const int x1 = std::min(r.x1, W - 1);
    const int top = std::max(r.y0, first / W), bottom = std::min({r.y1, H - 1, last / W});
    for (int y = top; y <= bottom; ++y) {
      const int begin = std::max(y * W + r.x0, first), end = std::min(y * W + x1, last);
      for (int i = begin; i <= end; ++i) mask[i - first] = std::max(mask[i - first], static_cast<A>(r.weight));
    }
  }
}

template <class A>
static void run_chunk(const Pyramid& p, const ChunkTask& task, A* sums, A* maps, const std::vector<A>& zeros,
                      void* scratch) {
  const LevelFeatures& level = p.levels[task.level];
  const int first = task.chunk * kChunkPixels, pixels = std::min(kChunkPixels, level.pixels() - first);
  A* mask = static_cast<A*>(scratch);
  rasterise(p, task.level, task.image, first, pixels, mask);
  const int64_t s = task.image * level.student_image + first * level.student_pixel;
  const int64_t t = task.image * level.teacher_image + first * level.teacher_pixel;
  ForwardChunk<A> chunk{};
  chunk.student = {offset(level.student, s, element_size(p.student_type)), level.student_channel, level.student_pixel};
  chunk.teacher = {offset(level.teacher, t, element_size(p.teacher_type)), level.teacher_channel, level.teacher_pixel};
  chunk.channels = level.channels;
  chunk.pixels = pixels;
  chunk.key_s = gc_key<A>(p, task.level, 0, zeros);
  chunk.key_t = gc_key<A>(p, task.level, 1, zeros);
  chunk.inverse_ct = 1 / (level.channels * p.spatial_temperature);
  chunk.mask = mask;
  for (int q = 0; q < kSoftmaxes; ++q)
    chunk.softmax[q] = maps + p.maps_offset(task.level, task.image) + int64_t{q} * level.pixels() + first;
  chunk.out = ChunkSums<A>::at(sums, level.channels);
  chunk_kernels<A>(p, task.level).forward(chunk, mask + kChunkPixels);
}

// What an image's merge needs to keep for the last step.
struct ImageTerms {
  double terms[kTerms];
  double squares;  // Σc D2[c]
};

template <class A>
static ImageTerms merge(const Pyramid& p, int level, int image, A* sums, int64_t stride, A* maps, A* stats,
                        double* differences, void* scratch) {
  const LevelFeatures& f = p.levels[level];
  A* mask = static_cast<A*>(scratch);
  rasterise(p, level, image, 0, f.pixels(), mask);
  ImageTerms out{};
  ImageMerge<A> m{};
  m.channels = f.channels;
  m.pixels = f.pixels();
  m.chunks = f.chunks();
  m.chunk_sums = sums;
  m.chunk_stride = stride;
  m.mask = mask;
  m.inverse_ct = 1 / (f.channels * p.spatial_temperature);
  m.inverse_pt = 1 / (f.pixels() * p.channel_temperature);
  m.maps = maps + p.maps_offset(level, image);
  m.stats = stats + p.stats_offset(level, image);
  m.differences = differences;
  m.terms = out.terms;
  image_kernels<A>().merge(m, mask + (f.pixels() + 15) / 16 * 16);
  out.squares = m.squares;
  return out;
}

// r = v_s - v_t into the stats, and L_gl = Σc D2 + 2·r·D1 + P·r².
template <class A>
static double shift(const LevelFeatures& f, const double* added_s, const double* added_t, const double* differences,
                    double squares, A* stats) {
  double sum = squares;
  for (int c = 0; c < f.channels; ++c) {
    const double r = added_s[c] - added_t[c], grad = 2 * (differences[c] + f.pixels() * r);
    sum += r * (differences[c] + grad / 2);
    stats[kStatShift * f.channels + c] = static_cast<A>(r);
    stats[kStatShiftGrad * f.channels + c] = static_cast<A>(grad);
  }
  return sum;
}

template <class A>
static void global_terms(const Pyramid& p, const Executor& run, const std::vector<double>& differences, A* stats,
                         std::vector<ImageTerms>& images) {
  const int levels = static_cast<int>(p.levels.size());
  int hidden = 1;
  for (int h : p.gc_hidden) hidden = std::max(hidden, h);
  const int64_t size = int64_t{p.images} * largest_channels(p);
  std::vector<double> added(2 * levels * size);
  run(2 * levels, int64_t{p.images} * hidden * sizeof(double), [&](int64_t task, void* scratch) {
    const int level = static_cast<int>(task / 2), net = task % 2, C = p.levels[level].channels;
    const A* context = stats + p.stats_offset(level, 0) + (net ? kStatContextT : kStatContextS) * C;
    gc_kernels<A>().forward(gc_transform<A>(p, level, net), context, int64_t{kStats} * C, &added[task * size],
                            static_cast<double*>(scratch));
  });
  for (int level = 0; level < levels; ++level)
    for (int n = 0; n < p.images; ++n) {
      const int64_t at = int64_t{n} * p.levels[level].channels;
      ImageTerms& image = images[level * p.images + n];
      image.terms[kGlobal] = shift(p.levels[level], &added[2 * level * size + at], &added[(2 * level + 1) * size + at],
                                   &differences[level * size + int64_t{n} * largest_channels(p)], image.squares,
                                   stats + p.stats_offset(level, n));
    }
}

template <class A>
void forward(const Pyramid& p, const Executor& run, A* terms, A* maps, A* stats) {
  const int levels = static_cast<int>(p.levels.size()), C = largest_channels(p);
  const std::vector<ChunkTask> tasks = chunk_tasks(p);
  const int64_t size = ChunkSums<A>::size(C);
  std::vector<A> sums(tasks.size() * size);
  const std::vector<A> zeros(C);
  run(tasks.size(), kChunkPixels * sizeof(A) + chunk_scratch_bytes(C),
      [&](int64_t i, void* scratch) { run_chunk<A>(p, tasks[i], &sums[i * size], maps, zeros, scratch); });

  std::vector<ImageTerms> images(levels * p.images);
  std::vector<double> differences(images.size() * C);  // D1 [levels][N][C]
  std::vector<int64_t> first_chunk(levels * p.images);
  int pixels = 0, chunks = 0;
  for (const ChunkTask& task : tasks) first_chunk[task.level * p.images + task.image] = task.index;
  for (const LevelFeatures& f : p.levels) pixels = std::max(pixels, f.pixels()), chunks = std::max(chunks, f.chunks());
  run(levels * p.images, (pixels + 15) / 16 * 16 * sizeof(A) + merge_scratch_bytes(C, pixels, chunks),
      [&](int64_t i, void* scratch) {
        const int level = static_cast<int>(i / p.images), image = static_cast<int>(i % p.images);
        images[i] =
            merge<A>(p, level, image, &sums[first_chunk[i] * size], size, maps, stats, &differences[i * C], scratch);
      });
  if (!p.gc_block.empty() && p.images > 0) global_terms<A>(p, run, differences, stats, images);

  for (int level = 0; level < levels; ++level)
    for (int k = 0; k < kTerms; ++k) {
      double sum = 0;
      for (int n = 0; n < p.images; ++n) sum += images[level * p.images + n].terms[k];
      terms[level * kTerms + k] = static_cast<A>(p.images ? sum / p.images * p.weights[level * kTerms + k] : 0);
    }
}

template void forward<float>(const Pyramid&, const Executor&, float*, float*, float*);
template void forward<double>(const Pyramid&, const Executor&, double*, double*, double*);

}  // namespace fgd::cpu

// Backward: GcBlocks (one task a level and net), then chunks (the one pass), then the sums of the key gradients.
#include <algorithm>

#include "pyramid.h"

namespace fgd::cpu {

// ∂L/∂ctx of both nets for every level and image, [levels][2][N][C].
template <class A>
struct ContextGrads {
  int64_t stride;  // between two nets of a level: N·C of the widest level
  std::vector<A> grads;
  const A* grad(int level, int net, int image, int channels) const {
    return &grads[(2 * level + net) * stride + int64_t{image} * channels];
  }
};

template <class A>
static double weighted(const Pyramid& p, const A* upstream, int level, Term term) {
  return upstream[term] * p.weights[level * kTerms + term] / p.images;
}

template <class A>
static GcTransformGrads<A> transform_grads(const std::vector<void*>& gc_block, int level, int net) {
  if (gc_block.empty()) return {};
  auto at = [&](GcTensor of_student) {
    return static_cast<A*>(gc_block[level * kGcTensors + gc_tensor(net, of_student)]);
  };
  return {at(kGcW1S), at(kGcB1S), at(kGcLnWeightS), at(kGcLnBiasS), at(kGcW2S), at(kGcB2S)};
}

template <class A>
static ContextGrads<A> context_grads(const Pyramid& p, const Executor& run, const A* upstream, const A* stats,
                                     const std::vector<void*>& gc_block) {
  const int levels = static_cast<int>(p.levels.size());
  ContextGrads<A> out{int64_t{p.images} * largest_channels(p), {}};
  out.grads.resize(2 * levels * out.stride);
  if (p.gc_block.empty()) return out;
  int hidden = 1;
  for (int h : p.gc_hidden) hidden = std::max(hidden, h);
  const size_t bytes = (3 * int64_t{p.images} * hidden + 2 * out.stride + 2 * hidden) * sizeof(double);
  run(2 * levels, bytes, [&](int64_t task, void* scratch) {
    const int level = static_cast<int>(task / 2), net = task % 2, C = p.levels[level].channels;
    const A* level_stats = stats + p.stats_offset(level, 0);
    const A* context = level_stats + (net ? kStatContextT : kStatContextS) * C;
    const double factor = (net ? -1 : 1) * weighted(p, upstream, level, kGlobal);
    double* grad_added = static_cast<double*>(scratch);
    A* grad_context = &out.grads[task * out.stride];
    for (int n = 0; n < p.images; ++n)
      for (int c = 0; c < C; ++c)
        grad_added[int64_t{n} * C + c] = factor * level_stats[(int64_t{n} * kStats + kStatShiftGrad) * C + c];
    gc_kernels<A>().backward(gc_transform<A>(p, level, net), transform_grads<A>(gc_block, level, net), context,
                             int64_t{kStats} * C, grad_added, grad_context, grad_added + out.stride);
  });
  return out;
}

// Pixels of one image, of one chunk at most.
struct Pixels {
  int level, image, first, count;
};

static Pixels pixels_of(const Pyramid& p, const ChunkTask& task) {
  const int first = task.chunk * kChunkPixels;
  return {task.level, task.image, first, std::min(kChunkPixels, p.levels[task.level].pixels() - first)};
}

template <class A>
static BackwardChunk<A> backward_chunk(const Pyramid& p, const Pixels& task, const A* upstream, const A* maps,
                                       const A* stats, const ContextGrads<A>& contexts, const std::vector<A>& zeros) {
  const LevelFeatures& level = p.levels[task.level];
  const int first = task.first, C = level.channels;
  const int64_t s = task.image * level.student_image + first * level.student_pixel;
  const int64_t t = task.image * level.teacher_image + first * level.teacher_pixel;
  const A* image_stats = stats + p.stats_offset(task.level, task.image);
  BackwardChunk<A> chunk{};
  chunk.student = {offset(level.student, s, element_size(p.student_type)), level.student_channel, level.student_pixel};
  chunk.teacher = {offset(level.teacher, t, element_size(p.teacher_type)), level.teacher_channel, level.teacher_pixel};
  chunk.channels = C;
  chunk.pixels = task.count;
  for (int k = 0; k < kMaps; ++k)
    chunk.maps[k] = maps + p.maps_offset(task.level, task.image) + int64_t{k} * level.pixels() + first;
  auto of_term = [&](Term term) { return static_cast<A>(weighted(p, upstream, task.level, term)); };
  chunk.grad_fg = of_term(kFg);
  chunk.grad_bg = of_term(kBg);
  chunk.grad_attention = of_term(kAttention);
  chunk.grad_global = p.gc_block.empty() ? A{0} : of_term(kGlobal);
  chunk.attention = image_stats + kStatAttention * C;
  chunk.attention_grad = image_stats + kStatAttentionGrad * C;
  chunk.shift = p.gc_block.empty() ? zeros.data() : image_stats + kStatShift * C;
  chunk.key_s = gc_key<A>(p, task.level, 0, zeros);
  chunk.context_s = p.gc_block.empty() ? zeros.data() : image_stats + kStatContextS * C;
  chunk.context_t = p.gc_block.empty() ? zeros.data() : image_stats + kStatContextT * C;
  chunk.context_grad_s = contexts.grad(task.level, 0, task.image, C);
  chunk.context_grad_t = contexts.grad(task.level, 1, task.image, C);
  return chunk;
}

// A gradient that nobody asked for goes to scratch: a row (or, channels_last, a pixel) that is written again and again.
template <class A>
static void point_gradient(const Pyramid& p, const Pixels& task, const std::vector<LevelGradient>& student,
                           void* discard, BackwardChunk<A>& chunk) {
  const LevelFeatures& level = p.levels[task.level];
  if (student.empty()) {
    const bool pixels_dense = level.layout == kPixelsDense;
    chunk.grad = discard;
    chunk.grad_channel = pixels_dense ? 0 : 1;
    chunk.grad_pixel = pixels_dense ? 1 : 0;
    return;
  }
  const LevelGradient& g = student[task.level];
  const int size = element_size(p.student_type);
  const int64_t first = task.image * g.image + task.first * g.pixel;
  chunk.grad = static_cast<char*>(g.data) + first * size;
  chunk.grad_channel = g.channel;
  chunk.grad_pixel = g.pixel;
  chunk.stream = int64_t{level.channels} * level.pixels() * p.images * size > kStreamBytes;
}

// ∂L/∂Wk = Σ f·F - ctx·Σ f: the chunks' parts, in order. ∂L/∂bk is 0, because a shift of all logits changes no softmax;
// or NaN, where a factor is not finite. parts: [tasks][2][stride], C sums of f·F and one of f.
template <class A>
static void sum_key_grads(const Pyramid& p, const std::vector<ChunkTask>& tasks, const A* stats,
                          const std::vector<A>& parts, int stride, const std::vector<void*>& gc_block) {
  std::vector<double> sum(2 * stride);
  for (size_t i = 0; i < tasks.size(); ++i) {
    const int level = tasks[i].level, C = p.levels[level].channels;
    for (int net = 0; net < 2; ++net) {
      const A* part = &parts[(2 * i + net) * stride];
      const A* context = stats + p.stats_offset(level, tasks[i].image) + (net ? kStatContextT : kStatContextS) * C;
      double* total = &sum[net * stride];
      const double factors = part[C];
      for (int c = 0; c < C; ++c) total[c] += part[c] - context[c] * factors;
      total[C] += factors;
    }
    if (i + 1 < tasks.size() && tasks[i + 1].level == level) continue;
    for (int net = 0; net < 2; ++net) {
      void* const* of_level = &gc_block[level * kGcTensors];
      A* weight = static_cast<A*>(of_level[gc_tensor(net, kGcKeyS)]);
      for (int c = 0; c < C; ++c) weight[c] = static_cast<A>(sum[net * stride + c]);
      *static_cast<A*>(of_level[gc_tensor(net, kGcKeyBiasS)]) = static_cast<A>(0 * sum[net * stride + C]);
    }
    std::fill(sum.begin(), sum.end(), 0.);
  }
}

// The pixel that has most of the weight of the student's context, or -1.
template <class A>
static int peak_of(const A* weights, int pixels) {
  const A* found = std::find_if(weights, weights + pixels, [](A weight) { return weight > A{0.75}; });
  return found == weights + pixels ? -1 : static_cast<int>(found - weights);
}

template <class A>
void backward(const Pyramid& p, const Executor& run, const A* upstream, const A* maps, const A* stats,
              const std::vector<LevelGradient>& student, const std::vector<void*>& gc_block) {
  const int C = largest_channels(p);
  const ContextGrads<A> contexts = context_grads(p, run, upstream, stats, gc_block);
  const std::vector<ChunkTask> tasks = chunk_tasks(p);
  const std::vector<A> zeros(C);
  const int stride = C + 1;  // of a chunk's key gradients
  std::vector<A> key_grads(p.gc_block.empty() ? 0 : tasks.size() * 2 * stride);
  // A multiple of 64 bytes: the kernel's scratch lies behind it.
  const size_t discard = sizeof(double) * std::max<size_t>(kChunkPixels, (C + 16 + 7) / 8 * 8);
  run(tasks.size(), discard + chunk_scratch_bytes(C), [&](int64_t i, void* scratch) {
    const Pixels pixels = pixels_of(p, tasks[i]);
    BackwardChunk<A> chunk = backward_chunk(p, pixels, upstream, maps, stats, contexts, zeros);
    point_gradient(p, pixels, student, scratch, chunk);
    if (!key_grads.empty()) {
      chunk.key_grad_s = &key_grads[i * 2 * stride];
      chunk.key_grad_t = chunk.key_grad_s + stride;
    }
    chunk_kernels<A>(p, tasks[i].level).backward(chunk, static_cast<char*>(scratch) + discard);
  });
  if (!key_grads.empty() && !student.empty())
    run(p.levels.size() * p.images, chunk_scratch_bytes(C), [&](int64_t i, void* scratch) {
      const int level = static_cast<int>(i / p.images), image = static_cast<int>(i % p.images);
      const int64_t size = p.levels[level].pixels();
      const int peak = peak_of(maps + p.maps_offset(level, image) + kMapContextS * size, static_cast<int>(size));
      if (peak < 0) return;
      double excess = 0;
      for (size_t task = 0; task < tasks.size(); ++task)
        if (tasks[task].level == level && tasks[task].image == image)
          excess += key_grads[task * 2 * stride + p.levels[level].channels];
      const Pixels pixel{level, image, peak, 1};
      BackwardChunk<A> chunk = backward_chunk(p, pixel, upstream, maps, stats, contexts, zeros);
      point_gradient(p, pixel, student, nullptr, chunk);
      chunk.stream = false;
      chunk.excess = static_cast<A>(excess);
      chunk_kernels<A>(p, level).backward(chunk, scratch);
    });
  if (!gc_block.empty()) sum_key_grads(p, tasks, stats, key_grads, stride, gc_block);
}

template void backward<float>(const Pyramid&, const Executor&, const float*, const float*, const float*,
                              const std::vector<LevelGradient>&, const std::vector<void*>&);
template void backward<double>(const Pyramid&, const Executor&, const double*, const double*, const double*,
                               const std::vector<LevelGradient>&, const std::vector<void*>&);

}  // namespace fgd::cpu

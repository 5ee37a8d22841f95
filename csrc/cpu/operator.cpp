// fgd_kernels::forward and ::backward for CPU tensors: from tensors to pointers and back.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <tuple>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "arguments.h"
#include "pyramid.h"

namespace fgd::cpu {

static LevelFeatures level_of(const Tensor& student, const Tensor& teacher, size_t level) {
  const Layout layout = layout_of(student, teacher, level);
  const Strides s = strides_of(student, layout), t = strides_of(teacher, layout);
  return {student.const_data_ptr(),
          teacher.const_data_ptr(),
          s.image,
          t.image,
          s.channel,
          s.pixel,
          t.channel,
          t.pixel,
          static_cast<int>(student.size(1)),
          static_cast<int>(student.size(2)),
          static_cast<int>(student.size(3)),
          layout};
}

static void check_offsets(const Tensor& boxes, const Tensor& offsets) {
  const int32_t* o = static_cast<const int32_t*>(offsets.const_data_ptr());
  const int64_t images = offsets.size(0) - 1;
  bool good = o[0] == 0 && o[images] <= boxes.size(0);
  for (int64_t n = 0; n < images; ++n) good = good && o[n] <= o[n + 1];
  STD_TORCH_CHECK(good, "box_offsets: expected ascending numbers from 0 to at most ", boxes.size(0));
}

static Pyramid pyramid_of(const Tensors& student, const Tensors& teacher, const Tensor& boxes, const Tensor& offsets,
                          const Tensor& sizes, const Tensors& gc, const std::vector<double>& weights, double spatial,
                          double channel) {
  check_forward(student, teacher, boxes, offsets, sizes, gc, weights);
  check_offsets(boxes, offsets);
  Pyramid p{};
  p.images = static_cast<int>(student[0].size(0));
  p.student_type = dtype_of(student[0]);
  p.teacher_type = dtype_of(teacher[0]);
  for (size_t level = 0; level < student.size(); ++level)
    p.levels.push_back(level_of(student[level], teacher[level], level));
  p.boxes = static_cast<const float*>(boxes.const_data_ptr());
  p.box_offsets = static_cast<const int32_t*>(offsets.const_data_ptr());
  p.image_sizes = static_cast<const float*>(sizes.const_data_ptr());
  for (const Tensor& t : gc) p.gc_block.push_back(t.const_data_ptr());
  for (size_t level = 0; !gc.empty() && level < student.size(); ++level)
    for (int net = 0; net < kGcNets; ++net) p.gc_hidden.push_back(gc_hidden(gc, level, net));
  p.weights = weights;
  p.spatial_temperature = spatial;
  p.channel_temperature = channel;
  return p;
}

// Tasks go to whichever thread is free. Which one does not matter: every task writes to places of its own.
static void run(int64_t count, size_t scratch_bytes, const Task& task) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, (scratch_bytes + 127) / 64 * 64),
                                                        &std::free);
    STD_TORCH_CHECK(scratch, "out of memory: ", scratch_bytes, " bytes of scratch");
    for (int64_t i = next++; i < count; i = next++) task(i, scratch.get());
  });
}

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class A>
static ForwardResult run_forward(const Pyramid& p, const Tensors& student) {
  const ScalarType type = accumulator(student);
  const int64_t levels = static_cast<int64_t>(p.levels.size());
  auto empty = [&](std::vector<int64_t> shape) { return torch::stable::new_empty(student[0], shape, type); };
  Tensor terms = empty({levels, kTerms}), maps = empty({p.maps_size()}), stats = empty({p.stats_size()});
  if (p.gc_block.empty()) torch::stable::zero_(stats);  // then there are no shifts to write
  A* values = static_cast<A*>(terms.mutable_data_ptr());
  forward<A>(p, run, values, static_cast<A*>(maps.mutable_data_ptr()), static_cast<A*>(stats.mutable_data_ptr()));
  Tensor sums[kTerms] = {empty({}), empty({}), empty({}), empty({})};
  for (int k = 0; k < kTerms; ++k) {
    double sum = 0;
    for (int64_t level = 0; level < levels; ++level) sum += values[level * kTerms + k];
    *static_cast<A*>(sums[k].mutable_data_ptr()) = static_cast<A>(sum);
  }
  return {sums[0], sums[1], sums[2], sums[3], terms, maps, stats};
}

static ForwardResult forward_op(Tensors student, Tensors teacher, Tensor boxes, Tensor offsets, Tensor sizes,
                                Tensors gc, std::vector<double> weights, double spatial, double channel,
                                std::optional<Tensor> foreground) {
  Pyramid p = pyramid_of(student, teacher, boxes, offsets, sizes, gc, weights, spatial, channel);
  check_foreground(foreground, student);
  if (foreground) p.foreground = static_cast<const float*>(foreground->const_data_ptr());
  return p.student_type == kFloat64 ? run_forward<double>(p, student) : run_forward<float>(p, student);
}

// A fresh large gradient is written once, and every first touch of a page is a fault: ask for large pages, and touch
// each from one thread. Chunks lie side by side in a page, and threads that met in a fresh one would all zero it.
static void use_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (end <= begin) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  run(static_cast<int64_t>((end - begin) / kPage), 0,
      [begin](int64_t page, void*) { *reinterpret_cast<volatile char*>(begin + page * kPage) = 0; });
#else
  (void)data;
  (void)bytes;
#endif
}

static LevelGradient gradient_of(const Tensor& grad, const Pyramid& p, size_t level) {
  const Strides strides = gradient_strides(grad, p.levels[level].layout, level);
  void* data = grad.mutable_data_ptr();
  use_large_pages(data, grad.numel() * element_size(p.student_type));
  return {data, strides.image, strides.channel, strides.pixel};
}

static std::tuple<Tensors, Tensors> backward_op(Tensor upstream, Tensors student, Tensors teacher, Tensor boxes,
                                                Tensor offsets, Tensor sizes, Tensors gc, std::vector<double> weights,
                                                double spatial, double channel, Tensor maps, Tensor stats,
                                                bool need_student, bool need_gc) {
  const Pyramid p = pyramid_of(student, teacher, boxes, offsets, sizes, gc, weights, spatial, channel);
  check_backward(upstream, maps, stats, student, p.maps_size(), p.stats_size());
  Tensors grad_student, grad_gc;
  std::vector<LevelGradient> student_out;
  std::vector<void*> gc_out;
  for (size_t level = 0; need_student && level < student.size(); ++level) {
    grad_student.push_back(torch::stable::empty_like(student[level]));
    student_out.push_back(gradient_of(grad_student.back(), p, level));
  }
  for (size_t i = 0; need_gc && i < gc.size(); ++i) {
    grad_gc.push_back(torch::stable::empty_like(gc[i]));
    if (p.images == 0) torch::stable::zero_(grad_gc.back());
    gc_out.push_back(grad_gc.back().mutable_data_ptr());
  }
  if (p.images > 0) {
    const void* m[] = {upstream.const_data_ptr(), maps.const_data_ptr(), stats.const_data_ptr()};
    if (p.student_type == kFloat64)
      backward<double>(p, run, static_cast<const double*>(m[0]), static_cast<const double*>(m[1]),
                       static_cast<const double*>(m[2]), student_out, gc_out);
    else
      backward<float>(p, run, static_cast<const float*>(m[0]), static_cast<const float*>(m[1]),
                      static_cast<const float*>(m[2]), student_out, gc_out);
  }
  return {grad_student, grad_gc};
}

STABLE_TORCH_LIBRARY_IMPL(fgd_kernels, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward_op));
  m.impl("backward", TORCH_BOX(&backward_op));
}

}  // namespace fgd::cpu

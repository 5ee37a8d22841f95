// fgd_kernels::forward and ::backward for CUDA tensors: from tensors to a plan, and the plan to the current stream.
// Nothing here waits for the device or looks at a value on it.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "arguments.h"
#include "launch.h"

// In torch's CUDA library, which a CPU-only torch lacks: a weak reference lets this library load there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace fgd::cuda {

// The one place where a tensor's address, strides and alignment are asked for; kernels and plan go by the answer.
static Features features_of(const Tensor& t, const void* data, const Strides& strides, Layout layout) {
  Features f{const_cast<void*>(data), strides.image, strides.channel, strides.pixel, 0, 0};
  f.alignment = alignment_of(f, static_cast<int>(t.size(1)), dtype_of(t), layout);
  return f;
}

static LevelInput level_of(const Tensor& s, const Tensor& t, const Tensors& gc, const std::vector<double>& weights,
                           size_t level) {
  LevelInput in{};
  in.layout = layout_of(s, t, level);
  in.student = features_of(s, s.const_data_ptr(), strides_of(s, in.layout), in.layout);
  in.teacher = features_of(t, t.const_data_ptr(), strides_of(t, in.layout), in.layout);
  in.channels = static_cast<int>(s.size(1));
  in.height = static_cast<int>(s.size(2));
  in.width = static_cast<int>(s.size(3));
  for (int k = 0; k < kTerms; ++k) in.weights[k] = weights[level * kTerms + k];
  if (gc.empty()) return in;
  for (int i = 0; i < kGcTensors; ++i) in.gc_block[i] = gc[level * kGcTensors + i].const_data_ptr();
  for (int net = 0; net < kGcNets; ++net) in.gc_hidden[net] = gc_hidden(gc, level, net);
  return in;
}

static Pyramid pyramid_of(const Tensors& student, const Tensors& teacher, const Tensor& boxes, const Tensor& offsets,
                          const Tensor& sizes, const Tensors& gc, const std::vector<double>& weights, double spatial,
                          double channel) {
  check_forward(student, teacher, boxes, offsets, sizes, gc, weights);
  for (const Tensor& t : gc)
    STD_TORCH_CHECK(t.device() == student[0].device(), "gc_block: expected the features' device");
  STD_TORCH_CHECK(student[0].size(0) < int64_t{1} << 28, "student: expected fewer than 2^28 images, got ",
                  student[0].size(0));
  Pyramid p{};
  p.images = static_cast<int>(student[0].size(0));
  p.student_type = dtype_of(student[0]);
  p.teacher_type = dtype_of(teacher[0]);
  for (size_t level = 0; level < student.size(); ++level)
    p.levels.push_back(level_of(student[level], teacher[level], gc, weights, level));
  p.boxes = static_cast<const float*>(boxes.const_data_ptr());
  p.box_count = static_cast<int>(boxes.size(0));
  p.box_offsets = static_cast<const int32_t*>(offsets.const_data_ptr());
  p.image_sizes = static_cast<const float*>(sizes.const_data_ptr());
  p.has_gc_block = !gc.empty();
  p.spatial_temperature = spatial;
  p.channel_temperature = channel;
  return p;
}

static void check(int error) {
  STD_TORCH_CHECK(error == cudaSuccess, "fgd_kernels: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
}

// Makes a device current, for PyTorch and for this library's own CUDA runtime.
class __attribute__((visibility("hidden"))) CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& like) : index_(like.get_device_index()), guard_(index_) {
    check(cudaSetDevice(index_));
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, index_));
  }
  int multiprocessors() const { return multiprocessors_; }
  void* stream() const {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "fgd_kernels: this torch was built without CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  int multiprocessors_ = 1;
};

// make(scratch) plans; the scratch memory goes back to PyTorch's allocator, which keeps the order of the stream.
template <class Make>
static void run(const Tensor& like, const CurrentDevice& device, const Make& make) {
  const Plan counted = make(nullptr);
  for (const Launch& l : counted.launches)
    STD_TORCH_CHECK(l.blocks <= INT32_MAX, "student: expected fewer images, a launch of ", l.blocks,
                    " blocks is more than a grid takes");
  Tensor scratch = torch::stable::new_empty(like, {static_cast<int64_t>(counted.scratch_bytes)}, ScalarType::Byte);
  check(launch(make(scratch.mutable_data_ptr()), device.stream()));
}

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

static ForwardResult forward_op(Tensors student, Tensors teacher, Tensor boxes, Tensor offsets, Tensor sizes,
                                Tensors gc, std::vector<double> weights, double spatial, double channel,
                                std::optional<Tensor> foreground) {
  Pyramid p = pyramid_of(student, teacher, boxes, offsets, sizes, gc, weights, spatial, channel);
  check_foreground(foreground, student);
  const float* mask = foreground ? static_cast<const float*>(foreground->const_data_ptr()) : nullptr;
  for (LevelInput& level : p.levels) {
    level.mask = mask;
    if (mask) mask += p.images * level.pixels();
  }
  const CurrentDevice device(student[0]);
  auto empty = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(student[0], shape, accumulator(student));
  };
  Tensor terms = empty({static_cast<int64_t>(student.size()), kTerms});
  Tensor maps = empty({maps_size(p)}), stats = empty({stats_size(p)});
  Tensor sums[kTerms] = {empty({}), empty({}), empty({}), empty({})};
  ForwardOutput out{terms.mutable_data_ptr(), maps.mutable_data_ptr(), stats.mutable_data_ptr(), {}};
  for (int k = 0; k < kTerms; ++k) out.sums[k] = sums[k].mutable_data_ptr();
  if (p.images > 0) {
    run(student[0], device, [&](void* scratch) { return plan_forward(p, out, scratch, device.multiprocessors()); });
  } else {
    torch::stable::zero_(terms);
    for (Tensor& sum : sums) torch::stable::zero_(sum);
  }
  return {sums[0], sums[1], sums[2], sums[3], terms, maps, stats};
}

static std::tuple<Tensors, Tensors> backward_op(Tensor upstream, Tensors student, Tensors teacher, Tensor boxes,
                                                Tensor offsets, Tensor sizes, Tensors gc, std::vector<double> weights,
                                                double spatial, double channel, Tensor maps, Tensor stats,
                                                bool need_student, bool need_gc) {
  const Pyramid p = pyramid_of(student, teacher, boxes, offsets, sizes, gc, weights, spatial, channel);
  const CurrentDevice device(student[0]);
  check_backward(upstream, maps, stats, student, maps_size(p), stats_size(p));
  Tensors grad_student, grad_gc;
  BackwardOutput out;
  for (size_t level = 0; need_student && level < student.size(); ++level) {
    grad_student.push_back(torch::stable::empty_like(student[level]));
    Tensor& grad = grad_student.back();
    const Layout layout = p.levels[level].layout;
    out.student.push_back(features_of(grad, grad.mutable_data_ptr(), gradient_strides(grad, layout, level), layout));
  }
  for (size_t i = 0; need_gc && i < gc.size(); ++i) {
    grad_gc.push_back(torch::stable::empty_like(gc[i]));
    if (p.images == 0) torch::stable::zero_(grad_gc.back());
    out.gc_block.push_back(grad_gc.back().mutable_data_ptr());
  }
  if (p.images > 0)
    run(student[0], device, [&](void* scratch) {
      return plan_backward(p, upstream.const_data_ptr(), maps.const_data_ptr(), stats.const_data_ptr(), out, scratch,
                           device.multiprocessors());
    });
  return {grad_student, grad_gc};
}

STABLE_TORCH_LIBRARY_IMPL(fgd_kernels, CUDA, m) {
  m.impl("forward", TORCH_BOX(&forward_op));
  m.impl("backward", TORCH_BOX(&backward_op));
}

}  // namespace fgd::cuda

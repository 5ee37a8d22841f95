#include "problem.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "narrow.h"

namespace problem {

using namespace fgd;
using namespace fgd::cpu;

Buffer::Buffer(size_t bytes) : data_(static_cast<char*>(::operator new[](bytes, std::align_val_t{64}))), size_(bytes) {
  std::memset(data_.get(), 0xff, bytes);
}

bool Buffer::operator==(const Buffer& other) const {
  return size_ == other.size_ && std::memcmp(data_.get(), other.data_.get(), size_) == 0;
}

static narrow::Format format_of(DType type) { return type == kFloat16 ? narrow::kHalf : narrow::kBFloat16; }

double read(DType type, const void* data, int64_t index) {
  if (type == kFloat64) return static_cast<const double*>(data)[index];
  if (type == kFloat32) return static_cast<double>(static_cast<const float*>(data)[index]);
  return narrow::value(format_of(type), static_cast<const uint16_t*>(data)[index]);
}

void write(DType type, void* data, int64_t index, double value) {
  if (type == kFloat64)
    static_cast<double*>(data)[index] = value;
  else if (type == kFloat32)
    static_cast<float*>(data)[index] = static_cast<float>(value);
  else
    static_cast<uint16_t*>(data)[index] = narrow::round(format_of(type), value);
}

Problem::Problem(const Case& wanted) : c(wanted), sums(wanted.student == kFloat64 ? kFloat64 : kFloat32) {
  check::Random random(c.name.size() + 7);
  batch.images = pyramid_.images = c.images;
  batch.spatial_temperature = pyramid_.spatial_temperature = c.spatial_temperature;
  batch.channel_temperature = pyramid_.channel_temperature = c.channel_temperature;
  pyramid_.student_type = c.student;
  pyramid_.teacher_type = c.teacher;
  make_boxes(random);
  for (int l = 0; l < static_cast<int>(c.levels.size()); ++l) {
    const Shape& shape = c.levels[l];
    batch.levels.push_back({shape.channels, shape.height, shape.width, {}, c.gc, {}, {}});
    const double weights[] = {0.7, 0.4, 0.3, 0.05};
    for (int k = 0; k < reference::kTerms; ++k) {
      batch.levels[l].weights[k] = weights[k] * (1 + 0.25 * l);
      pyramid_.weights.push_back(batch.levels[l].weights[k]);
    }
    make_features(random, l);
    if (c.gc) make_gc(random, l);
  }
}

// By turns: three boxes (some leave the image), none, one that covers all of it, and nothing but nonsense.
void Problem::make_boxes(check::Random& random) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  offsets_.push_back(0);
  for (int n = 0; n < c.images; ++n) {
    std::vector<reference::Box> boxes;
    for (int i = 0; n % 4 == 0 && i < 3; ++i) {
      const float x = static_cast<float>(random.uniform(-20, 120)), y = static_cast<float>(random.uniform(-20, 90));
      boxes.push_back(
          {x, y, x + static_cast<float>(random.uniform(0, 60)), y + static_cast<float>(random.uniform(0, 50))});
    }
    if (n % 4 == 2) boxes = {{-9, -9, 999, 999}, {30, 20, 70, 80}};
    if (n % 4 == 3) boxes = {{nan, 0, 50, 50}, {200, 0, 300, 50}, {50, 50, 20, 80}};
    batch.boxes.push_back(boxes);
    batch.sizes.push_back({104, 136});
    for (const reference::Box& box : boxes) boxes_.insert(boxes_.end(), box.begin(), box.end());
    offsets_.push_back(static_cast<int32_t>(boxes_.size() / 4));
    sizes_.insert(sizes_.end(), {104, 136});
  }
  pyramid_.boxes = boxes_.data();
  pyramid_.box_offsets = offsets_.data();
  pyramid_.image_sizes = sizes_.data();
}

// `extra`: channels of the larger tensor of which a slice is taken.
Strides Problem::strides(const reference::Level& level, int extra) const {
  const int64_t P = level.pixels(), C = level.channels + (c.sliced ? extra : 0), images = c.sliced ? 2 : 1;
  if (c.layout == kChannelsDense) return {images * C * P, 1, C};
  const int64_t row = P + (c.sliced ? extra : 0);
  return {images * C * row, row, 1};
}

static size_t elements(const Strides& s, const reference::Level& level, int images) {
  return images ? static_cast<size_t>(s.at(images - 1, level.channels - 1, level.pixels() - 1)) + 1 : 0;
}

void Problem::make_features(check::Random& random, int l) {
  reference::Level& level = batch.levels[l];
  LevelFeatures features{};
  features.channels = level.channels;
  features.height = level.height;
  features.width = level.width;
  features.layout = c.layout;
  for (int net = 0; net < 2; ++net) {
    const DType type = net ? c.teacher : c.student;
    const Strides s = strides(level, net ? 5 : 3);
    memory_.emplace_back(elements(s, level, c.images) * element_size(type));
    void* data = memory_.back().data();
    for (int n = 0; n < c.images; ++n)
      for (int channel = 0; channel < level.channels; ++channel)
        for (int p = 0; p < level.pixels(); ++p) {
          const int64_t at = s.at(n, channel, p);
          write(type, data, at, random.normal() * (1 + 0.5 * (channel % 3)));
          level.feature[net].push_back(read(type, data, at));
        }
    (net ? features.teacher : features.student) = data;
    (net ? features.teacher_image : features.student_image) = s.image;
    (net ? features.teacher_channel : features.student_channel) = s.channel;
    (net ? features.teacher_pixel : features.student_pixel) = s.pixel;
  }
  pyramid_.levels.push_back(features);
}

void Problem::make_gc(check::Random& random, int l) {
  reference::Level& level = batch.levels[l];
  const int C = level.channels;
  pyramid_.gc_block.resize((l + 1) * kGcTensors);
  for (int net = 0; net < 2; ++net) {
    reference::Net& w = level.net[net];
    const int K = w.hidden = C < 8 ? 1 : C / 2 + net;  // as they come: not the same for both
    pyramid_.gc_hidden.push_back(K);
    const int sizes[] = {C, 1, K * C, K, K, K, C * K, C};
    for (int i = 0; i < reference::kNetTensors; ++i) {
      memory_.emplace_back(sizes[i] * element_size(sums));
      void* data = memory_.back().data();
      const double mean = i == reference::kNormWeight ? 1 : 0,
                   deviation = i == reference::kKey ? 1 / std::sqrt(C) : 0.3;
      for (int k = 0; k < sizes[i]; ++k) {
        write(sums, data, k, mean + deviation * random.normal());
        w.tensor[i].push_back(read(sums, data, k));
      }
      pyramid_.gc_block[l * kGcTensors + gc_index(net, i)] = data;
    }
  }
}

template <class A>
static void forward_in(const Pyramid& p, const Executor& run, const Problem::Saved& out) {
  fgd::cpu::forward<A>(p, run, static_cast<A*>(out.terms.data()), static_cast<A*>(out.maps.data()),
                       static_cast<A*>(out.stats.data()));
}

Problem::Saved Problem::forward(const Executor& run) const {
  const size_t size = element_size(sums);
  size_t pixels = 0, channels = 0;
  for (const reference::Level& level : batch.levels) pixels += level.pixels(), channels += level.channels;
  Saved out{Buffer(c.levels.size() * fgd::kTerms * size), Buffer(c.images * pixels * fgd::kMaps * size),
            Buffer(c.images * channels * fgd::kStats * size)};
  (sums == kFloat64 ? forward_in<double> : forward_in<float>)(pyramid_, run, out);
  return out;
}

template <class A>
static void backward_in(const Pyramid& p, const Executor& run, const Problem::Saved& saved,
                        const std::vector<LevelGradient>& student, const std::vector<void*>& gc) {
  A upstream[fgd::kTerms];
  for (int k = 0; k < fgd::kTerms; ++k) upstream[k] = static_cast<A>(Problem::upstream()[k]);
  fgd::cpu::backward<A>(p, run, upstream, static_cast<const A*>(saved.maps.data()),
                        static_cast<const A*>(saved.stats.data()), student, gc);
}

Gradients Problem::backward(const Executor& run, const Saved& saved, bool want_student, bool want_gc) const {
  Gradients out;
  std::vector<LevelGradient> student;
  std::vector<void*> gc;
  for (const reference::Level& level : batch.levels) {
    const Strides s = strides(level, 7);
    if (want_student) {
      out.student.emplace_back(elements(s, level, c.images) * element_size(c.student));
      student.push_back({out.student.back().data(), s.image, s.channel, s.pixel});
    }
    const size_t first = out.gc.size();
    if (want_gc) out.gc.resize(first + kGcTensors);
    for (int net = 0; want_gc && net < kGcNets; ++net)
      for (int i = 0; i < reference::kNetTensors; ++i)
        out.gc[first + gc_index(net, i)] = Buffer(level.net[net].tensor[i].size() * element_size(sums));
    for (size_t i = first; i < out.gc.size(); ++i) gc.push_back(out.gc[i].data());
  }
  (sums == kFloat64 ? backward_in<double> : backward_in<float>)(pyramid_, run, saved, student, gc);
  return out;
}

reference::Vector Problem::student_gradient(const Gradients& g, int l) const {
  const reference::Level& level = batch.levels[l];
  const Buffer& buffer = g.student[l];
  const Strides s = strides(level, 7);
  const int size = element_size(c.student);
  std::vector<bool> ours(buffer.size() / size);
  reference::Vector out;
  for (int n = 0; n < c.images; ++n)
    for (int channel = 0; channel < level.channels; ++channel)
      for (int p = 0; p < level.pixels(); ++p) {
        const int64_t at = s.at(n, channel, p);
        ours[at] = true;
        out.push_back(read(c.student, buffer.data(), at));
      }
  const unsigned char* byte = static_cast<const unsigned char*>(buffer.data());
  for (size_t i = 0; i < buffer.size(); ++i)
    if (!ours[i / size]) CHECK(byte[i] == 0xff, "%s: written beside the gradient's slice", c.name.c_str());
  return out;
}

reference::Vector Problem::vector(const Buffer& buffer) const {
  reference::Vector out(buffer.size() / element_size(sums));
  for (size_t i = 0; i < out.size(); ++i) out[i] = read(sums, buffer.data(), static_cast<int64_t>(i));
  return out;
}

// Scratch memory is as large as was asked for, not larger, and no task finds what another left there.
static void work(std::atomic<int64_t>& next, int64_t count, size_t scratch_bytes, const Task& task) {
  const Buffer scratch(scratch_bytes);
  for (int64_t i = next++; i < count; i = next++) {
    std::memset(scratch.data(), 0xff, scratch.size());
    task(i, scratch.data());
  }
}

Executor serial() {
  return [](int64_t count, size_t scratch_bytes, const Task& task) {
    std::atomic<int64_t> next{0};
    work(next, count, scratch_bytes, task);
  };
}

Executor threaded() {
  return [](int64_t count, size_t scratch_bytes, const Task& task) {
    std::atomic<int64_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back([&] { work(next, count, scratch_bytes, task); });
    for (std::thread& thread : threads) thread.join();
  };
}

}  // namespace problem

// A random call of fgd::cpu::forward and ::backward, in memory that ends where the data end: whatever reads or writes
// beyond is caught by the sanitizer, and what lies between the elements of a slice is NaN.
#pragma once

#include <memory>
#include <new>
#include <string>

#include "check.h"
#include "pyramid.h"
#include "reference.h"

namespace problem {

using fgd::DType;
using fgd::Layout;
using fgd::cpu::Executor;

struct Shape {
  int channels, height, width;
};

struct Case {
  std::string name;
  std::vector<Shape> levels;
  int images = 2;
  DType student = fgd::kFloat32, teacher = fgd::kFloat32;
  Layout layout = fgd::kPixelsDense;
  bool gc = true;
  bool sliced = false;  // channels and images of a larger tensor, for features and the gradient alike
  double spatial_temperature = 0.5, channel_temperature = 0.5;
};

std::vector<Case> all_cases();

// Exactly `bytes` bytes, aligned to 64 and filled with ones: NaN in every floating-point type.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0);
  void* data() const { return data_.get(); }
  size_t size() const { return size_; }
  bool operator==(const Buffer& other) const;

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<char[], Free> data_;
  size_t size_;
};

double read(DType type, const void* data, int64_t index);
void write(DType type, void* data, int64_t index, double value);  // rounds

// Where element (image, c, p) of a feature map lies.
struct Strides {
  int64_t image, channel, pixel;
  int64_t at(int64_t n, int64_t c, int64_t p) const { return n * image + c * channel + p * pixel; }
};

struct Gradients {
  std::vector<Buffer> student, gc;
};

class Problem {
 public:
  explicit Problem(const Case& c);

  // Buffers for the results: terms, maps and stats.
  struct Saved {
    Buffer terms, maps, stats;
  };
  Saved forward(const Executor& run) const;
  Gradients backward(const Executor& run, const Saved& saved, bool student, bool gc) const;

  // A student gradient as [images][channels][pixels]; also checks that nothing was written beside it.
  reference::Vector student_gradient(const Gradients& g, int level) const;
  reference::Vector vector(const Buffer& buffer) const;  // of sums

  static std::array<double, reference::kTerms> upstream() { return {1.0, 0.7, 1.3, 0.9}; }
  // Where a GcBlock's tensor lies among the sixteen of a level.
  static int gc_index(int net, int tensor) {
    using namespace fgd;
    constexpr GcTensor kKinds[] = {kGcKeyS, kGcKeyBiasS, kGcW1S, kGcB1S, kGcLnWeightS, kGcLnBiasS, kGcW2S, kGcB2S};
    static_assert(sizeof(kKinds) / sizeof(*kKinds) == reference::kNetTensors);
    return gc_tensor(net, kKinds[tensor]);
  }

  Case c;
  reference::Batch batch;
  DType sums;  // double for double features, else float

 private:
  Strides strides(const reference::Level& level, int extra) const;
  void make_boxes(check::Random& random);
  void make_features(check::Random& random, int level);
  void make_gc(check::Random& random, int level);

  fgd::cpu::Pyramid pyramid_{};
  std::vector<Buffer> memory_;
  std::vector<float> boxes_, sizes_;
  std::vector<int32_t> offsets_;
};

// One thread; and four, which take the next task when they are done with one.
Executor serial();
Executor threaded();

}  // namespace problem

// The FGD loss of a pyramid and its gradients, equation by equation, as the paper and docs/kernels.md write them: in
// double, one term after the other, with nothing fused or factored out. Knows nothing of csrc.
#pragma once

#include <array>
#include <vector>

namespace reference {

using Vector = std::vector<double>;
using Box = std::array<float, 4>;

enum Term { kFg, kBg, kAttention, kGlobal, kTerms };
enum NetTensor { kKey, kKeyBias, kW1, kB1, kNormWeight, kNormBias, kW2, kB2, kNetTensors };

// One network's GcBlock: W1 is [hidden][channels], W2 is [channels][hidden].
struct Net {
  int hidden = 0;
  Vector tensor[kNetTensors];
};

struct Level {
  int channels, height, width;
  Vector feature[2];  // student, teacher: [images][channels][pixels]
  bool has_gc = false;
  Net net[2];  // of the student, of the teacher
  double weights[kTerms];
  int pixels() const { return height * width; }
};

struct Batch {
  int images;
  std::vector<std::vector<Box>> boxes;      // x1, y1, x2, y2, one list an image
  std::vector<std::array<float, 2>> sizes;  // height, width
  double spatial_temperature, channel_temperature;
  std::vector<Level> levels;
};

// A gradient, and the size of what is added up in it: where that cancels, an error is measured against it.
struct Gradient {
  Vector value;
  double scale = 0;
};

struct Gradients {
  Gradient student;
  Gradient net[2][kNetTensors];
};

// [pixels] weights of (2) and (3): the smallest box wins; 0 where there is none.
Vector foreground(const Batch& batch, const Level& level, int image);

// The four terms of one level, weighted and averaged over the images.
std::array<double, kTerms> terms(const Batch& batch, const Level& level);

// Of  Σ upstream[k]·terms[k].
Gradients gradients(const Batch& batch, const Level& level, const std::array<double, kTerms>& upstream);

}  // namespace reference

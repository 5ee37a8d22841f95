// What the pyramid tests run: shapes, types, layouts, slices, switches.
#include <limits>

#include "problem.h"

namespace problem {

using namespace fgd;
using namespace fgd::cpu;

static const char* name_of(DType type) {
  const char* names[] = {"float32", "float16", "bfloat16", "float64"};
  return names[type];
}

static Case make(const std::string& name, std::vector<Shape> levels, DType type, Layout layout) {
  Case c;
  c.name = name + " " + name_of(type) + (layout == kPixelsDense ? " contiguous" : " channels_last");
  c.levels = std::move(levels);
  c.student = c.teacher = type;
  c.layout = layout;
  return c;
}

// Odd sizes, each with channel counts below, at and above the width of a vector.
static void add_shapes(std::vector<Case>& cases, DType type, Layout layout) {
  const int sizes[][2] = {{1, 1}, {1, 7}, {5, 1}, {13, 17}};
  for (const auto& size : sizes) {
    std::vector<Shape> levels;
    for (int channels : {1, 3, 16, 65}) levels.push_back({channels, size[0], size[1]});
    Case c = make(std::to_string(size[0]) + "x" + std::to_string(size[1]), levels, type, layout);
    c.images = 4;
    cases.push_back(c);
  }
  cases.push_back(make("two chunks", {{3, 33, 70}, {16, 6, 5}}, type, layout));
}

static void add_switches(std::vector<Case>& cases, DType type, Layout layout) {
  const std::vector<Shape> levels = {{19, 13, 17}, {7, 5, 3}};
  Case c = make("no GcBlock", levels, type, layout);
  c.gc = false;
  cases.push_back(c);
  c = make("slices", levels, type, layout);
  c.sliced = true;
  cases.push_back(c);
  c.name = "slices of" + c.name;
  c.levels = {{5, 33, 70}};
  cases.push_back(c);
  c = make("no image", levels, type, layout);
  c.images = 0;
  cases.push_back(c);
  c = make("temperatures", levels, type, layout);
  c.spatial_temperature = 0.2;
  c.channel_temperature = 3;
  cases.push_back(c);
  c.name = "no spatial attention," + c.name;
  c.spatial_temperature = std::numeric_limits<double>::infinity();
  cases.push_back(c);
}

static void add_large(std::vector<Case>& cases, Layout layout) {
  cases.push_back(make("many channels, two chunks", {{65, 33, 70}}, kFloat32, layout));
  // Above kStreamBytes: the gradient is written round the caches.
  Case c = make("streamed", {{65, 64, 64}}, kFloat32, layout);
  c.images = 4;
  cases.push_back(c);
  // Sums over channels in several blocks, the last of them not whole.
  cases.push_back(make("several blocks of channels", {{129, 5, 7}, {300, 3, 11}}, kFloat32, layout));
  // The most channels that are promised, and one less: scratch memory depends on them.
  for (int channels : {2047, 2048}) {
    c = make(std::to_string(channels) + " channels", {{channels, 3, 3}}, kFloat32, layout);
    c.images = 1;
    c.gc = false;
    cases.push_back(c);
  }
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (Layout layout : {kPixelsDense, kChannelsDense}) {
    for (DType type : {kFloat32, kFloat16, kBFloat16, kFloat64}) {
      add_shapes(cases, type, layout);
      add_switches(cases, type, layout);
    }
    for (DType student : {kFloat32, kFloat16, kBFloat16})
      for (DType teacher : {kFloat32, kFloat16, kBFloat16}) {
        if (student == teacher) continue;
        Case c = make(std::string("teacher ") + name_of(teacher), {{19, 13, 17}}, student, layout);
        c.teacher = teacher;
        cases.push_back(c);
      }
    add_large(cases, layout);
  }
  return cases;
}

}  // namespace problem

// fgd/mask.h: which pixels a box covers, and its weight, bit for bit, in float32.
#include <cmath>
#include <limits>
#include <utility>

#include "check.h"
#include "fgd/mask.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();

struct Frame {
  float h, w;  // of the image, in pixels
  int H, W;    // of the map
};

void expect(const char* name, const Frame& f, float x1, float y1, float x2, float y2, fgd::Rectangle want) {
  const float box[] = {x1, y1, x2, y2};
  const fgd::Rectangle got = fgd::box_rectangle(box, f.h, f.w, f.H, f.W);
  CHECK(got.x0 == want.x0 && got.y0 == want.y0 && got.x1 == want.x1 && got.y1 == want.y1, "%s: got x %d..%d, y %d..%d",
        name, got.x0, got.x1, got.y0, got.y1);
  CHECK(check::same_bits(got.weight, want.weight), "%s: got %.9g, not %.9g", name, got.weight, want.weight);
}

void expect_empty(const char* name, const Frame& f, float x1, float y1, float x2, float y2) {
  const float box[] = {x1, y1, x2, y2};
  const fgd::Rectangle got = fgd::box_rectangle(box, f.h, f.w, f.H, f.W);
  CHECK(got.x0 > got.x1 || got.y0 > got.y1, "%s: covers x %d..%d, y %d..%d", name, got.x0, got.x1, got.y0, got.y1);
}

// 1 / height, then / width, as the published masks are computed.
float weight(int height, int width) { return 1.f / height / width; }

void test_inside() {
  const Frame f{104, 136, 13, 17};  // a stride of 8
  expect("on the grid", f, 16, 24, 32, 40, {2, 3, 4, 5, weight(3, 3)});
  expect("off the grid", f, 17, 25, 31, 39, {2, 3, 4, 5, weight(3, 3)});
  expect("just over", f, 15.5f, 23.5f, 32.5f, 40.5f, {1, 2, 5, 6, weight(5, 5)});
  expect("within a pixel", f, 17, 25, 18, 26, {2, 3, 3, 4, weight(2, 2)});
  expect("wide", f, 0, 50, 136, 51, {0, 6, 17, 7, weight(2, 18)});
  expect("the whole image", f, 0, 0, 136, 104, {0, 0, 17, 13, weight(14, 18)});
}

void test_zero_area() {
  const Frame f{104, 136, 13, 17};
  expect("a point on the grid", f, 16, 24, 16, 24, {2, 3, 2, 3, 1.f});
  expect("a point off the grid", f, 17, 25, 17, 25, {2, 3, 3, 4, weight(2, 2)});
  expect("a line", f, 16, 24, 16, 40, {2, 3, 2, 5, weight(3, 1)});
  expect("the first corner", f, 0, 0, 0, 0, {0, 0, 0, 0, 1.f});
  expect("the last corner", f, 136, 104, 136, 104, {17, 13, 17, 13, 1.f});
}

void test_cut_to_the_image() {
  const Frame f{104, 136, 13, 17};
  expect("left and above", f, -50, -1, 16, 24, {0, 0, 2, 3, weight(4, 3)});
  expect("right and below", f, 120, 96, 500, 105, {15, 12, 17, 13, weight(2, 3)});
  expect("around it all", f, -9, -9, 999, 999, {0, 0, 17, 13, weight(14, 18)});
  expect("as far as float32 goes", f, -3e38f, -3e38f, 3e38f, 3e38f, {0, 0, 17, 13, weight(14, 18)});
  expect_empty("left", f, -20, 10, -1, 20);
  expect_empty("above", f, 10, -20, 20, -1);
  expect_empty("right", f, 137, 10, 150, 20);
  expect_empty("below", f, 10, 105, 20, 120);
}

void test_nonsense() {
  const Frame f{104, 136, 13, 17};
  expect_empty("x inverted", f, 32, 24, 16, 40);
  expect_empty("y inverted", f, 16, 40, 32, 24);
  for (int i = 0; i < 4; ++i)
    for (float bad : {kNaN, kInf, -kInf}) {
      float box[] = {16, 24, 32, 40};
      box[i] = bad;
      expect_empty("one coordinate not finite", f, box[0], box[1], box[2], box[3]);
    }
  expect_empty("all NaN", f, kNaN, kNaN, kNaN, kNaN);
  expect_empty("all of the plane", f, -kInf, -kInf, kInf, kInf);
}

// Any box inside the image against the formula written out, in its order of operations.
void test_random() {
  check::Random random(1);
  for (int i = 0; i < 20000; ++i) {
    const Frame f{static_cast<float>(random.uniform(1, 1400)), static_cast<float>(random.uniform(1, 1400)),
                  static_cast<int>(random.uniform(1, 200)), static_cast<int>(random.uniform(1, 200))};
    float x[2], y[2];
    for (int k = 0; k < 2; ++k) {
      x[k] = static_cast<float>(random.uniform(0, f.w));
      y[k] = static_cast<float>(random.uniform(0, f.h));
    }
    if (x[0] > x[1]) std::swap(x[0], x[1]);
    if (y[0] > y[1]) std::swap(y[0], y[1]);
    // volatile: every quotient and product is rounded to float32.
    volatile float left = x[0] / f.w, top = y[0] / f.h, right = x[1] / f.w, bottom = y[1] / f.h;
    left = left * f.W, right = right * f.W, top = top * f.H, bottom = bottom * f.H;
    const int x0 = static_cast<int>(std::floor(left)), x1 = static_cast<int>(std::ceil(right));
    const int y0 = static_cast<int>(std::floor(top)), y1 = static_cast<int>(std::ceil(bottom));
    expect("random", f, x[0], y[0], x[1], y[1], {x0, y0, x1, y1, weight(y1 + 1 - y0, x1 + 1 - x0)});
  }
}

}  // namespace

int main() {
  test_inside();
  test_zero_area();
  test_cut_to_the_image();
  test_nonsense();
  test_random();
  return check::result("mask");
}

// A box's pixels and weight on a feature map: equations (2) and (3), shared by the CPU and the CUDA kernels.
//
//   x0 = floor(x1/w·W)   x1' = ceil(x2/w·W)   y0 = floor(y1/h·H)   y1' = ceil(y2/h·H)
//   weight = 1 / ((y1' + 1 - y0)·(x1' + 1 - x0))
//
// in float32 and in this order of operations, so that masks are bit-equal to the published implementation's.
#pragma once

#include <cmath>

#include "host_device.h"

namespace fgd {

struct Rectangle {
  int x0, y0, x1, y1;  // ends included; x1 = W and y1 = H are possible, and count in the weight
  float weight;
};

// `box` is x1, y1, x2, y2 in pixels of an image of height h and width w; the map has height H and width W. A box
// that is not finite, inverted, or outside the image gives an empty rectangle (x0 > x1).
FGD_HOST_DEVICE Rectangle box_rectangle(const float* box, float h, float w, int H, int W) {
  const float x1 = box[0], y1 = box[1], x2 = box[2], y2 = box[3];
  // Each comparison is false for NaN; infinities fail one of the last four or are caught by fabs.
  const bool covers = x1 <= x2 && y1 <= y2 && x2 >= 0.f && y2 >= 0.f && x1 <= w && y1 <= h && fabsf(x1) < INFINITY &&
                      fabsf(y1) < INFINITY && fabsf(x2) < INFINITY && fabsf(y2) < INFINITY;
  if (!covers) return {1, 1, 0, 0, 0.f};
  const float left = floorf(fminf(fmaxf(x1, 0.f), w) / w * W), right = ceilf(fminf(fmaxf(x2, 0.f), w) / w * W);
  const float top = floorf(fminf(fmaxf(y1, 0.f), h) / h * H), bottom = ceilf(fminf(fmaxf(y2, 0.f), h) / h * H);
  const float weight = 1.f / (bottom + 1.f - top) / (right + 1.f - left);
  return {static_cast<int>(left), static_cast<int>(top), static_cast<int>(right), static_cast<int>(bottom), weight};
}

}  // namespace fgd

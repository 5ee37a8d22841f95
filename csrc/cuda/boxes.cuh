// fg (2), (3) on a run of pixels: the boxes that reach into it are collected in shared memory once, then every pixel
// takes the largest weight among those that cover it. The maximum does not depend on the order of collection.
#pragma once

#include "device.cuh"

namespace fgd::cuda {

constexpr int kMaxBoxes = 256;

struct BoxList {
  int count;                // may exceed kMaxBoxes: then every pixel walks over all boxes of the image
  int first_box, last_box;  // of the image, in `boxes`
  float height, width;      // of the image
  int4 corners[kMaxBoxes];  // x0, y0, x1, y1, ends included
  float weight[kMaxBoxes];
};

// For all threads of a block; ends with a barrier. Pixels begin .. end - 1 of the level's map.
FGD_DEVICE void collect_boxes(const PyramidParams& p, const Level& level, int image, int begin, int end,
                              BoxList& list) {
  // Offsets are checked where they are made; wrong ones must not lead out of `boxes`.
  const int first = max(p.box_offsets[image], 0), last = min(p.box_offsets[image + 1], p.box_count);
  const float height = p.image_sizes[2 * image], width = p.image_sizes[2 * image + 1];
  if (threadIdx.x == 0) {
    list.count = 0;
    list.first_box = first;
    list.last_box = last;
    list.height = height;
    list.width = width;
  }
  __syncthreads();
  const int top = begin / level.width, bottom = (end - 1) / level.width;
  for (int box = first + threadIdx.x; box < last; box += kThreads) {
    const Rectangle r = box_rectangle(p.boxes + 4 * int64_t{box}, height, width, level.height, level.width);
    if (r.x0 > r.x1 || r.y0 > bottom || r.y1 < top) continue;
    const int at = atomicAdd(&list.count, 1);
    if (at >= kMaxBoxes) continue;
    list.corners[at] = {r.x0, r.y0, r.x1, r.y1};
    list.weight[at] = r.weight;
  }
  __syncthreads();
}

FGD_DEVICE bool inside(int x, int y, const int4& corners) {
  return x >= corners.x && y >= corners.y && x <= corners.z && y <= corners.w;
}

FGD_DEVICE float weight_of_many(const PyramidParams& p, const Level& level, const BoxList& list, int x, int y,
                                int share, int shares) {
  float weight = 0;
  for (int box = list.first_box + share; box < list.last_box; box += shares) {
    const Rectangle r = box_rectangle(p.boxes + 4 * int64_t{box}, list.height, list.width, level.height, level.width);
    if (inside(x, y, {r.x0, r.y0, r.x1, r.y1})) weight = fmaxf(weight, r.weight);
  }
  return weight;
}

// The largest weight among every shares-th box, from `share` on, that covers a pixel.
FGD_DEVICE float box_weight(const PyramidParams& p, const Level& level, const BoxList& list, int pixel, int share,
                            int shares) {
  const int count = list.count;
  if (count == 0) return 0;
  const int y = static_cast<unsigned>(pixel) / static_cast<unsigned>(level.width), x = pixel - y * level.width;
  if (count > kMaxBoxes) return weight_of_many(p, level, list, x, y, share, shares);
  float weight = 0;
  for (int i = share; i < count; i += shares)
    if (inside(x, y, list.corners[i])) weight = fmaxf(weight, list.weight[i]);
  return weight;
}

}  // namespace fgd::cuda

// fg (2), (3) of a chunk's pixels: the largest weight among the boxes that cover a pixel. It is written to shared
// memory before the first tile, so that the loop over tiles knows no boxes, however many there are; or copied from a
// map.
//
// A box's part of a row is two runs of 2^k pixels that may overlap: two maxima in a table of runs. When all boxes have
// left theirs, the runs are halved, down to single pixels: a box costs a few instructions a row, whatever its width.
#pragma once

#include "device.cuh"

namespace fgd::cuda {

constexpr int kPiece = 512;  // pixels that are done at a time
constexpr int kRuns = 10;    // lengths 1, 2, 4 .. kPiece
static_assert(1 << (kRuns - 1) == kPiece && kPiece % kThreads == 0, "a row's part is at most a piece");

struct ChunkMask {  // in shared memory
  float weight[kMaxChunkPixels];
  int run[kRuns][kPiece];  // run[k][i]: of pixels i .. i + 2^k - 1; weights' bits, which are ordered as they are
};

// Pixels first .. last of a piece.
FGD_DEVICE void raise_run(ChunkMask& mask, int first, int last, float weight) {
  const int k = 31 - __clz(last + 1 - first), bits = __float_as_int(weight);
  atomicMax(&mask.run[k][first], bits);
  atomicMax(&mask.run[k][last + 1 - (1 << k)], bits);
}

// Pixels begin .. end - 1 of the level's map, at most kPiece; for all threads of a block.
FGD_DEVICE void rasterise(const PyramidParams& p, const Level& level, int image, int begin, int end, ChunkMask& mask,
                          float* weights) {
  // Offsets are checked where they are made; wrong ones must not lead out of `boxes`.
  const int first = max(p.box_offsets[image], 0), last = min(p.box_offsets[image + 1], p.box_count);
  const float height = p.image_sizes[2 * image], image_width = p.image_sizes[2 * image + 1];
  const int width = level.width, longest = 31 - __clz(min(width, kPiece));
  for (int k = 0; k <= longest; ++k)
    for (int i = threadIdx.x; i < kPiece; i += kThreads) mask.run[k][i] = 0;
  __syncthreads();
  const int top = begin / width, bottom = (end - 1) / width;
  for (int box = first + threadIdx.x; box < last; box += kThreads) {
    const Rectangle r = box_rectangle(p.boxes + 4 * int64_t{box}, height, image_width, level.height, width);
    const int right = min(r.x1, width - 1);
    for (int y = max(r.y0, top); y <= min(r.y1, bottom); ++y) {
      const int from = max(y * width + r.x0, begin), to = min(y * width + right, end - 1);
      if (from <= to) raise_run(mask, from - begin, to - begin, r.weight);
    }
  }
  __syncthreads();
  for (int k = longest; k > 0; --k) {
    const int half = 1 << (k - 1);
    for (int i = threadIdx.x; i < kPiece; i += kThreads) {
      const int second = i >= half ? mask.run[k][i - half] : 0;
      mask.run[k - 1][i] = max(mask.run[k - 1][i], max(mask.run[k][i], second));
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < kPiece; i += kThreads) weights[i] = __int_as_float(mask.run[0][i]);
}

// Pixels begin .. end - 1 of the level's map, zeros behind them up to a whole piece; for all threads of a block, ends
// with a barrier.
FGD_DEVICE void fill_mask(const PyramidParams& p, const Level& level, int image, int begin, int end, ChunkMask& mask) {
  const float* given = level.mask ? level.mask + int64_t{image} * level.pixels : nullptr;
  for (int piece = begin; piece < end; piece += kPiece) {
    float* weights = mask.weight + (piece - begin);
    if (!given)
      rasterise(p, level, image, piece, min(end, piece + kPiece), mask, weights);
    else
      for (int i = threadIdx.x; i < kPiece; i += kThreads) weights[i] = piece + i < end ? given[piece + i] : 0.f;
    __syncthreads();
  }
}

// How many of a chunk's pixels are background; every thread gets the result.
FGD_DEVICE int background_pixels(const ChunkMask& mask, int pixels) {
  __shared__ int part[kWarps];
  int count = 0;
  for (int i = threadIdx.x; i < pixels; i += kThreads) count += !(mask.weight[i] > 0);
  return add_over_block(count, part);
}

}  // namespace fgd::cuda

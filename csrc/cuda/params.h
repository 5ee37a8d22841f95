// What a launch knows, passed by value: plain structs that the host (plan.cpp), the kernels and the tests share.
//
// N images, levels l with C channels and P = H·W pixels. A is the type of sums: float, or double for float64 features.
// Strides are in elements. No kernel takes anything but one of these structs, so that a launch is a name, a grid and
// some bytes: a CUDA graph captures it, and tests/kernels/cuda executes it without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fgd/gc_block.h"
#include "fgd/layout.h"
#include "fgd/mask.h"

namespace fgd::cuda {

constexpr int kThreads = 256;       // of every block
constexpr int kMaxLevels = 8;       // a launch; longer pyramids take several
constexpr int kMergeColumns = 256;  // columns of [kSums][C] that a block merges
constexpr int kMaxChunkPixels = 2048;
constexpr int kMergePixels = kMaxChunkPixels;  // pixels that a block of the second step finishes
constexpr int kFastChannels = 256;             // up to so many, a block holds a tile with all channels
constexpr int kGcRows = 8;                     // rows of a matrix that a block multiplies: one a warp
constexpr int kGcImages = 8;                   // images that it multiplies them with

// Element (n, c, p) lies at data[n·image + c·channel + p·pixel].
struct Features {
  void* data;
  int64_t image, channel, pixel;
  int alignment;  // in bytes, at most 16, of every row (NCHW) or pixel (channels_last)
  int pad;
};

// A chunk is a run of `chunk_pixels` neighbouring pixels of one image: what a block does. It leaves [kSums][C] sums,
// then
enum ChunkNumber : int {
  kChunkMaximum = 0,                      // of each softmax
  kChunkNormaliser = kSoftmaxes,          // of each softmax
  kChunkNormaliserRest = 2 * kSoftmaxes,  // of each softmax: digits that the normaliser has no room for
  kChunkBackground = 3 * kSoftmaxes,      // number of background pixels
  kChunkNumbers
};
constexpr int kChunkPadding = 16;
static_assert(kChunkNumbers <= kChunkPadding, "a chunk's numbers lie behind its sums");
FGD_HOST_DEVICE int64_t chunk_stride(int channels) { return int64_t{kSums} * channels + kChunkPadding; }

// What a chunk leaves of ∂L/∂Wk of student and teacher: [2][C] sums, then these. See backward_pixels.cuh.
template <class A>
struct KeyNumbers {
  A total[2];   // Σ f over the chunk's pixels, the peak's left out
  int peak[2];  // the image's peak, if it lies in this chunk; else -1
};
constexpr int kKeyNumbers = 4;
FGD_HOST_DEVICE int64_t key_stride(int channels) { return int64_t{2} * channels + kKeyNumbers; }

// What the merge of an image leaves for later kernels, in float64.
enum ImageNumber : int {
  kImageMaximum = 0,                         // of each softmax
  kImageNormaliser = kSoftmaxes,             // of each softmax
  kImageBackground = 2 * kSoftmaxes,         // number of background pixels
  kImageTerms,                               // L_fg, L_bg, L_at, L_gl
  kImageNumbers = kImageTerms + kTerms + 3,  // a multiple of 8
};

struct Level {
  Features student, teacher, grad;
  int channels, height, width, pixels;
  int chunk_pixels, chunks;   // of an image
  int first_block, pad;       // the level's first block in the pass over features
  const void *key_s, *key_t;  // [C] Wk; null where there is no GcBlock
  const float* mask;          // [N][P] weights of the foreground, 0 elsewhere; null: of the boxes
  void *maps, *stats;         // [N][kMaps][P], [N][kStats][C]
  void* chunk_sums;           // [N][chunks] of chunk_stride(C), after the merge an image's sums in its first chunk's
                              // place; backward: [N][chunks] of key_stride(C), parts of ∂L/∂Wk
  const void* context_grad;   // [2][N][C] ∂L/∂ctx of student and teacher
  double* image_numbers;      // [N][kImageNumbers]
  double* pixel_parts;        // [N][pixel blocks][2]: parts of Σ|A^S_s - A^S_t| and of Σ sign·A^S_s
  double weights[kTerms];     // of the level's terms, over N
};

struct PyramidParams {
  Level levels[kMaxLevels];
  int level_count, images;
  int student_type, teacher_type;
  int box_count, pad;          // M
  const float* boxes;          // [M][4]
  const int32_t* box_offsets;  // [N + 1]
  const float* image_sizes;    // [N][2]
  const void* upstream;        // [kTerms]
  unsigned* done;              // blocks of gc_added that are done, see GcAddedParams; null without GcBlocks
  double spatial_temperature, channel_temperature;
};

// One level of a GcBlock pair of K hidden channels each; [2] stands for student and teacher.
struct GcLevel {
  Features student, teacher;
  const void* tensors[kGcTensors];
  int channels, pixels, chunks, first_block;
  int hidden[2];          // K
  void* stats;            // [N][kStats][C]
  void* hidden_sums[2];   // [N][K] W1·ctx + b1
  void* active_grad[2];   // [N][K] ∂L/∂relu(..)
  void* hidden_grad[2];   // [N][K] ∂L/∂hidden_sums
  void* moments[2];       // [N][2] mean and 1/deviation of hidden_sums
  void* context_grad;     // [2][N][C]
  const void* key_parts;  // [N][chunks] of key_stride(C)
  double* shift_parts;    // [N][blocks of kGcRows channels], see gc_block.cu
  double weight;          // of L_gl, over N
};

struct GcParams {
  GcLevel levels[kMaxLevels];
  int level_count, images;
  int student_type, teacher_type;
  const void* upstream;  // [kTerms]
};

// The second step of the merge, and W1·ctx + b1 of the GcBlocks in its last blocks.
struct FinishParams {
  PyramidParams pyramid;
  struct {
    const void *w1[2], *b1[2];
    void* hidden_sums[2];  // [N][K]
    int hidden[2];
    int first_block, pad;
  } gc[kMaxLevels];
  int pyramid_blocks, pad;
};

struct GcParameterParams {
  GcParams gc;
  void* grads[kMaxLevels][kGcTensors];
};

// Blocks that one net of one level needs, for the kernels of gc_block.cu and gc_backward.cu. Host and device count
// alike.
FGD_HOST_DEVICE int blocks_of(int64_t count, int size) { return static_cast<int>((count + size - 1) / size); }
FGD_HOST_DEVICE int gc_row_blocks(int rows, int images) {
  return blocks_of(rows, kGcRows) * blocks_of(images, kGcImages);
}
FGD_HOST_DEVICE int gc_column_blocks(int columns, int images) {
  return blocks_of(columns, 32) * blocks_of(images, kGcImages);
}
FGD_HOST_DEVICE int gc_matrix_blocks(int channels, int hidden) {
  return blocks_of(int64_t{channels} * hidden, kThreads);
}
FGD_HOST_DEVICE int gc_vector_blocks(int channels, int hidden) {
  return blocks_of(channels > hidden ? channels : hidden, kThreads);
}
FGD_HOST_DEVICE int gc_parameter_blocks(int channels, int hidden) {
  return 2 * gc_matrix_blocks(channels, hidden) + gc_vector_blocks(channels, hidden) + blocks_of(channels, 32);
}

// Sums of terms over levels, the last kernel of a forward pass.
struct TermsParams {
  struct {
    const double* image_numbers;  // [N][kImageNumbers]
    const double* shift_parts;    // of GcLevel
    int channels, pad;
    double weights[kTerms];  // over N
  } levels[kMaxLevels];
  int level_count, images;
  int first_level, has_gc_block;
  void* terms;         // [all levels][kTerms]
  void* sums[kTerms];  // over all levels so far
};

// The last block of GcBlock's second step adds up the terms: the one that finds all others in `done`, which the merge
// before set to 0.
struct GcAddedParams {
  GcParams gc;
  TermsParams terms;
  unsigned* done;
};

constexpr size_t kMostBytes = 4096;
static_assert(sizeof(FinishParams) <= kMostBytes && sizeof(GcParameterParams) <= kMostBytes &&
                  sizeof(GcAddedParams) <= kMostBytes,
              "parameters of a kernel: at most 4 KB on every architecture");

}  // namespace fgd::cuda

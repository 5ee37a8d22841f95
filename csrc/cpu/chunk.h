// The unit of work of the CPU kernels: a chunk of neighbouring pixels of one image on one level, with all channels.
//
// How an image is cut into chunks depends on its shape alone, so that results are the same bits whatever the number
// of threads. Every instruction set fills one table of kernels; dispatch.cpp picks the table.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fgd/layout.h"

// Functions of this header are used by every instruction set's kernels; inlined, none can be merged across them.
#define FGD_INLINE inline __attribute__((always_inline))
#define FGD_UNROLL _Pragma("GCC unroll 16")

namespace fgd::cpu {

constexpr int kChunkPixels = 2048;
constexpr int kMaxTilePixels = 512;
constexpr int kMinTilePixels = 32;
constexpr int64_t kStreamBytes = 4 << 20;  // gradients of levels larger than this are written round the caches
constexpr int kMaxTiles = kChunkPixels / kMinTilePixels;

// An image's features: element (c, p) lies at data[c·channel + p·pixel].
struct Features {
  const void* data;
  int64_t channel, pixel;  // strides, in elements
};

// What a chunk's forward pass leaves, in memory: the eight sums, what was subtracted from the features in those of the
// contexts (choose_origin), then the maxima of the four softmaxes, those of the attentions without their factor. A
// maximum's last digits, for which a number of its size has no room, are a second number.
template <class A>
struct ChunkSums {
  A *sums, *origin_s, *origin_t, *maximum, *maximum_lost;  // [kSums][C], each [C], each [kSoftmaxes]
  FGD_INLINE static int64_t size(int channels) { return int64_t{kSums + 2} * channels + 2 * kSoftmaxes; }
  FGD_INLINE double largest(int softmax) const { return double{maximum[softmax]} + maximum_lost[softmax]; }
  FGD_INLINE static ChunkSums at(A* memory, int channels) {
    A *origin = memory + int64_t{kSums} * channels, *end = origin + 2 * channels;
    return {memory, origin, origin + channels, end, end + kSoftmaxes};
  }
};

// Forward, one chunk. Pointers into per-pixel arrays point at the chunk's first pixel.
template <class A>
struct ForwardChunk {
  Features student, teacher;
  int channels, pixels;
  const A *key_s, *key_t;  // [C] Wk of the student's and the teacher's GcBlock
  double inverse_ct;       // 1 / (C·T): 0 switches spatial attention off
  const A* mask;           // [pixels] fg, and zeros up to the next multiple of 16
  // Results.
  A* softmax[kSoftmaxes];  // each [pixels]: of the attentions logit - maximum of the chunk, of the contexts exp of it
  ChunkSums<A> out;
};

// Backward, one chunk.
template <class A>
struct BackwardChunk {
  Features student, teacher;
  void* grad;  // ∂L/∂s, of the student's type, or null
  int64_t grad_channel, grad_pixel;
  bool stream;  // write the gradient round the caches
  int channels, pixels;
  const A* maps[kMaps];  // each [pixels]
  // Upstream gradients times the terms' weights, over N.
  A grad_fg, grad_bg, grad_attention, grad_global;
  // Per channel, [C].
  const A *attention, *attention_grad, *shift;
  const A* key_s;                            // Wk_s
  const A *context_s, *context_t;            // ctx of student and teacher
  const A *context_grad_s, *context_grad_t;  // g_ctx
  A excess;  // subtracted from the student's factors f = q·(u - ū): 0, but where one pixel is done again
  // Results: [C] Σp f·s, then Σp f; and the same of the teacher. Null if nobody asked.
  A *key_grad_s, *key_grad_t;
};

// The second step of the forward pass, one image on one level.
template <class A>
struct ImageMerge {
  int channels, pixels, chunks;
  A* chunk_sums;                  // of the image's first chunk
  int64_t chunk_stride;           // from one chunk's sums to the next one's
  const A* mask;                  // [P] fg
  double inverse_ct, inverse_pt;  // 1 / (C·T) of the spatial, 1 / (P·T) of the channel attention
  A* maps;                        // [kMaps][P]: in as in ForwardChunk::softmax, out what is saved
  A* stats;                       // [kStats][C], out, but for kStatShift and kStatShiftGrad
  double* differences;            // [C], out: D1
  double* terms;                  // [kTerms], added to
  double squares;                 // out: Σc D2[c]

  FGD_INLINE ChunkSums<A> chunk(int i) const { return ChunkSums<A>::at(chunk_sums + i * chunk_stride, channels); }
  FGD_INLINE int end(int i) const { return (i + 1) * kChunkPixels < pixels ? (i + 1) * kChunkPixels : pixels; }
};

// One GcBlock's transform W2·relu(LN(W1·x + b1)) + b2 over N context vectors of C channels, K hidden ones.
template <class A>
struct GcTransform {
  int images, channels, hidden;
  const A *w1, *b1, *ln_weight, *ln_bias, *w2, *b2;
};

template <class A>
struct GcTransformGrads {
  A *w1, *b1, *ln_weight, *ln_bias, *w2, *b2;  // all null if the parameters are frozen
};

// The kernels of one instruction set, for sums in A.
template <class A>
struct ChunkKernels {
  void (*forward)(ForwardChunk<A>&, void* scratch);
  void (*backward)(const BackwardChunk<A>&, void* scratch);
};

template <class A>
struct ImageKernels {
  void (*merge)(ImageMerge<A>&, void* scratch);  // scratch: merge_scratch_bytes
};

template <class A>
struct GcKernels {
  // context [N][stride] -> added [N][C]; scratch [N][K].
  void (*forward)(const GcTransform<A>&, const A* context, int64_t stride, double* added, double* scratch);
  // grad_added [N][C] -> grad_context [N][C] and the parameters' gradients; scratch [3][N][K], [N][C], [2][K].
  void (*backward)(const GcTransform<A>&, const GcTransformGrads<A>&, const A* context, int64_t stride,
                   const double* grad_added, A* grad_context, double* scratch);
};

struct KernelTable {
  const char* name;
  ChunkKernels<float> narrow[kFloat64][kFloat64][kLayouts];  // [student's DType][teacher's DType][Layout]
  ChunkKernels<double> wide[kLayouts];
  GcKernels<float> gc_f32;
  GcKernels<double> gc_f64;
  ImageKernels<float> image_f32;
  ImageKernels<double> image_f64;
};

// Bytes of scratch (aligned to 64) that a chunk of C channels needs, and the merge of an image.
inline size_t chunk_scratch_bytes(int channels) {
  return 8 * kMaxTilePixels * sizeof(double) + size_t(channels + 64) * kSums * 64;
}
inline size_t merge_scratch_bytes(int channels, int pixels, int chunks) {
  return (2 * size_t(pixels) + 2 * size_t(kSoftmaxes) * chunks + size_t(kSums) * channels) * sizeof(double);
}

const KernelTable& kernels();  // the best table for this machine, or the one that FGD_CPU_ISA names

}  // namespace fgd::cpu

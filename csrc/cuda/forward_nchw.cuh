// Forward over features whose pixels are dense (NCHW), C <= 256, student and teacher of up to 32 bits each. A block
// does a chunk: tile after tile of pixels with all channels,
//
//   1. per pixel    Σc |t|, Σc |s|, Σc Wk_s·s, Σc Wk_t·t      from registers; the next tile's loads are sent off behind
//   it
//   2. per pixel    exponentials against running maxima, mask weights (forward_pixels.cuh)
//   3. per channel  Qf, Qb, D1, D2, Σ|s|, Σ|t|, Σ e·s, Σ e·t  from the same registers, into registers
//
//   student, teacher  [N][C][P] with any strides of image and channel
//   maps              [N][kMaps][P]   out: the four logits of every pixel
//   chunk_sums        [N][chunks]     out: [kSums][C] and the numbers of the softmaxes
#pragma once

#include "forward_pixels.cuh"
#include "nchw.cuh"

namespace fgd::cuda::nchw {

struct Keys {
  float student[kRows], teacher[kRows];
  FGD_DEVICE explicit Keys(const Level& level) {
    const float *s = static_cast<const float*>(level.key_s), *t = static_cast<const float*>(level.key_t);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int c = channel(i);
      student[i] = s && c < level.channels ? s[c] : 0.f;
      teacher[i] = t && c < level.channels ? t[c] : 0.f;
    }
  }
};

// Also Σ|s| and Σ|t| of the channels, while the absolute values are at hand.
template <class S, class T>
FGD_DEVICE void add_pixel_sums(const Tile<S, T>& tile, const Keys& keys, float (&sum)[kSoftmaxes][kPair<S, T>],
                               float (&channel_sum)[kRows][kSums]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float s[kPair<S, T>], t[kPair<S, T>], part_s = 0, part_t = 0;
    unpack<S, kPair<S, T>>(tile.student[i], s, S{});
    unpack<T, kPair<S, T>>(tile.teacher[i], t, T{});
#pragma unroll
    for (int j = 0; j < kPair<S, T>; ++j) {
      const float of_s = fabsf(s[j]), of_t = fabsf(t[j]);
      part_s = j == 0 ? of_s : part_s + of_s;
      part_t = j == 0 ? of_t : part_t + of_t;
      sum[kTeacher][j] = i == 0 ? of_t : sum[kTeacher][j] + of_t;
      sum[kStudent][j] = i == 0 ? of_s : sum[kStudent][j] + of_s;
      sum[kContextS][j] = i == 0 ? keys.student[i] * s[j] : sum[kContextS][j] + keys.student[i] * s[j];
      sum[kContextT][j] = i == 0 ? keys.teacher[i] * t[j] : sum[kContextT][j] + keys.teacher[i] * t[j];
    }
    channel_sum[i][kSumAbsS] += part_s;
    channel_sum[i][kSumAbsT] += part_t;
  }
}

// Over the 8 rows of a warp.
template <class S, class T>
FGD_DEVICE void share_pixel_sums(const float (&sum)[kSoftmaxes][kPair<S, T>],
                                 PixelStep<float, kTilePixels<S, T>>& step) {
  const int lane = lane_index(), pixel = column() * kPair<S, T> + owned_sum<kPair<S, T>, kColumns>(lane);
#pragma unroll
  for (int k = 0; k < kSoftmaxes; ++k) {
    const float x = sum_over_lanes<kPair<S, T>, kColumns, 32>(sum[k], lane);
    if (kPair<S, T> == 32 / kColumns || lane < kColumns * kPair<S, T>) step.part[k][warp_index()][pixel] = x;
  }
}

// A tile's pixels are summed by themselves first: one by one into a chunk's sums they would lose a digit where features
// have 16 bits.
template <class S, class T>
FGD_DEVICE void add_channel_sums(const Tile<S, T>& tile, const PixelStep<float, kTilePixels<S, T>>& step,
                                 float (&sum)[kRows][kSums]) {
  float weight[kWeights][kPair<S, T>];
#pragma unroll
  for (int k = 0; k < kWeights; ++k) read_columns(step.weight[k], weight[k]);
  const float teacher = step.rescale[kTeacher], context_s = step.rescale[kContextS],
              context_t = step.rescale[kContextT];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float s[kPair<S, T>], t[kPair<S, T>];
    unpack<S, kPair<S, T>>(tile.student[i], s, S{});
    unpack<T, kPair<S, T>>(tile.teacher[i], t, T{});
    float part[kSums];
#pragma unroll
    for (int j = 0; j < kPair<S, T>; ++j)
      accumulate(j == 0, s[j], t[j], weight[kWeightFg][j], weight[kWeightBg][j], weight[kWeightContextS][j],
                 weight[kWeightContextT][j], part);
    add_part(teacher, context_s, context_t, part, sum[i]);
  }
}

FGD_DEVICE void write_channel_sums(const float (&sum)[kRows][kSums], int channels, float* out) {
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      const float x = add_over_lanes<1, kColumns>(sum[i][k]);
      if (column() == 0 && channel(i) < channels) out[k * channels + channel(i)] = x;
    }
}

template <class S, class T>
FGD_DEVICE void forward(const PyramidParams& p) {
  __shared__ ChunkMask mask;
  __shared__ __align__(16) PixelStep<float, kTilePixels<S, T>> step;
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Rows<S, T> rows(level, chunk.image);
  Tile<S, T> tile, next;
  rows.load(level, chunk.begin, chunk.end, tile);
  fill_mask(p, level, chunk.image, chunk.begin, chunk.end, mask);
  const Keys keys(level);
  const float scale = logit_scale<float>(p, level, threadIdx.x / kTilePixels<S, T>);
  float* maps = image_maps<float>(level, chunk.image);
  float sum[kRows][kSums] = {};
  SoftmaxState<float> state;
  for (int first = chunk.begin; first < chunk.end; first += kTilePixels<S, T>) {
    float pixel_sums[kSoftmaxes][kPair<S, T>];
    add_pixel_sums<S, T>(tile, keys, pixel_sums, sum);
    if (first + kTilePixels<S, T> < chunk.end) rows.load(level, first + kTilePixels<S, T>, chunk.end, next);
    share_pixel_sums<S, T>(pixel_sums, step);
    __syncthreads();
    finish_pixels(step, mask.weight + (first - chunk.begin), scale, first, chunk.end, maps, int64_t{level.pixels},
                  state);
    __syncthreads();
    add_exponentials<float, kTilePixels<S, T>>(state);
    add_channel_sums<S, T>(tile, step, sum);
    tile = next;
  }
  float* out = chunk_sums<float>(level, chunk.image, chunk.index);
  write_channel_sums(sum, level.channels, out);
  const int background = background_pixels(mask, chunk.end - chunk.begin);
  write_softmaxes<float, kTilePixels<S, T>>(state, background, out + int64_t{kSums} * level.channels);
}

}  // namespace fgd::cuda::nchw

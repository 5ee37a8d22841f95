// Forward over features whose pixels are dense (NCHW) with 257 to 2048 channels, student and teacher of one type of up
// to 32 bits: the steps of forward_nchw.cuh by the way of nchw_wide.cuh.
//
//   student, teacher  [N][C][P] with any strides of image and channel
//   maps              [N][kMaps][P]   out: the four logits of every pixel
//   chunk_sums        [N][chunks]     out: [kSums][C] and the numbers of the softmaxes
#pragma once

#include "forward_pixels.cuh"
#include "nchw_wide.cuh"

namespace fgd::cuda::nchw_wide {

template <class Z>
using Step = PixelStep<float, Z::kPixels>;

// Whether Σ|s| and Σ|t| of a channel are summed where |s| and |t| are at hand, or with its other sums, which saves
// registers.
template <class Z>
constexpr bool kEarly = Z::kMost <= 512;

// Wk, zeros where there is none. In shared memory.
template <class Z>
struct Keys {
  float student[Z::kMost], teacher[Z::kMost];
  FGD_DEVICE void fill(const Level& level) {
    const float *s = static_cast<const float*>(level.key_s), *t = static_cast<const float*>(level.key_t);
    for (int c = threadIdx.x; c < Z::kMost; c += kThreads) {
      student[c] = s && c < level.channels ? s[c] : 0.f;
      teacher[c] = t && c < level.channels ? t[c] : 0.f;
    }
  }
};

// A row of one map into the pixels' sums of its two softmaxes; returns Σ|x|.
template <class Z>
FGD_DEVICE float add_pixel_sums(const Packet<typename Z::T, Z::kV>& packet, bool first, float key,
                                float (&sum)[2][Z::kV]) {
  using T = typename Z::T;
  float x[Z::kV], part = 0;
  unpack<T, Z::kV>(packet, x, T{});
#pragma unroll
  for (int j = 0; j < Z::kV; ++j) {
    const float of_x = fabsf(x[j]);
    part = j == 0 ? of_x : part + of_x;
    sum[0][j] = first ? of_x : sum[0][j] + of_x;
    sum[1][j] = first ? key * x[j] : sum[1][j] + key * x[j];
  }
  return part;
}

// Weights of this thread's pixels and what older sums shrink by: kept in registers, or read anew for every row.
template <class Z>
struct Weights {
  static constexpr bool kKept = Z::kShare == 1;
  const Step<Z>& step;
  float kept[kKept ? kWeights : 1][Z::kV];
  float teacher, context_s, context_t;
  FGD_DEVICE explicit Weights(const Step<Z>& from)
      : step(from),
        teacher(from.rescale[kTeacher]),
        context_s(from.rescale[kContextS]),
        context_t(from.rescale[kContextT]) {
    if constexpr (kKept)
#pragma unroll
      for (int k = 0; k < kWeights; ++k) read_columns<Z>(step.weight[k], kept[k]);
  }
  // Of pixels begin .. begin + 3.
  FGD_DEVICE void read(Weight k, int begin, float (&out)[4]) const {
    if constexpr (kKept)
#pragma unroll
      for (int j = 0; j < 4; ++j) out[j] = kept[k][begin + j];
    else
      read_four_again<Z>(step.weight[k], begin, out);
  }
};

template <class Z>
FGD_DEVICE void add_channel_sums(const Tile<Z>& tile, int i, const Weights<Z>& weights, Sums<Z, kSums>& sum) {
  using T = typename Z::T;
  float s[Z::kV], t[Z::kV], part[kSums];
  unpack<T, Z::kV>(tile.student[i], s, T{});
  unpack<T, Z::kV>(tile.teacher[i], t, T{});
#pragma unroll
  for (int begin = 0; begin < Z::kV; begin += 4) {
    float a[4], b[4];
    weights.read(kWeightFg, begin, a);
    weights.read(kWeightBg, begin, b);
#pragma unroll
    for (int j = 0; j < 4; ++j) accumulate_difference(begin + j == 0, s[begin + j], t[begin + j], a[j], b[j], part);
    weights.read(kWeightContextS, begin, a);
    weights.read(kWeightContextT, begin, b);
#pragma unroll
    for (int j = 0; j < 4; ++j) accumulate_contexts(begin + j == 0, s[begin + j], t[begin + j], a[j], b[j], part);
  }
  if constexpr (!kEarly<Z>) {
    part[kSumAbsS] = fabsf(s[0]), part[kSumAbsT] = fabsf(t[0]);
#pragma unroll
    for (int j = 1; j < Z::kV; ++j) part[kSumAbsS] += fabsf(s[j]), part[kSumAbsT] += fabsf(t[j]);
  }
  if constexpr (Z::kShare == 2) {
    const float shrink = Z::column() ? weights.context_t : weights.context_s;
    sum[kSumFg / 2] = sum[kSumFg / 2] * weights.teacher + own_sum<Z>(part[kSumFg], part[kSumBg]);
    sum[kSumD / 2] += own_sum<Z>(part[kSumD], part[kSumD2]);
    sum[kSumAbsS / 2] += own_sum<Z>(part[kSumAbsS], part[kSumAbsT]);
    sum[kSumContextS / 2] = sum[kSumContextS / 2] * shrink + own_sum<Z>(part[kSumContextS], part[kSumContextT]);
  } else {
    add_part(weights.teacher, weights.context_s, weights.context_t, part, sum);
    if constexpr (!kEarly<Z>) {
      sum[kSumAbsS] += part[kSumAbsS];
      sum[kSumAbsT] += part[kSumAbsT];
    }
  }
}

template <class Z>
FGD_DEVICE void forward(const PyramidParams& p) {
  __shared__ ChunkMask mask;
  __shared__ __align__(16) Step<Z> step;
  __shared__ Keys<Z> keys;
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  Maps<Z> features(level, chunk);
  Tile<Z> tile;
  keys.fill(level);
  fill_mask(p, level, chunk.image, chunk.begin, chunk.end, mask);
  const float scale = logit_scale<float>(p, level, threadIdx.x / Z::kPixels);
  float* maps = image_maps<float>(level, chunk.image);
  Sums<Z, kSums> sum[Z::kChannels] = {};
  // In shared memory, where the mask is made no more: registers are short.
  static_assert(sizeof(mask.run) >= kSoftmaxes * Z::kPixels * sizeof(SoftmaxState<float>));
  SoftmaxState<float>& state = reinterpret_cast<SoftmaxState<float>*>(mask.run)[threadIdx.x];
  if (threadIdx.x < kSoftmaxes * Z::kPixels) state = SoftmaxState<float>();
  bool loaded = false;
  for (int first = chunk.begin; first < chunk.end; first += Z::kPixels) {
    if (!loaded) features.load(first, chunk.end, tile);
    // One map after the other: there are no registers for the sums of both.
    auto share_map = [&](const auto& packets, const float* key, Softmax activation, Softmax context, Sum of_channel) {
      float of_pixels[2][Z::kV];
      features.for_rows([&](int i) {
        const float x = add_pixel_sums<Z>(packets[i], i == 0, key[Z::channel(i)], of_pixels);
        if constexpr (kEarly<Z>) sum[i][of_channel] += x;
      });
      share_sums<Z>(of_pixels[0], step.part[activation]);
      share_sums<Z>(of_pixels[1], step.part[context]);
    };
    share_map(tile.student, keys.student, kStudent, kContextS, kSumAbsS);
    share_map(tile.teacher, keys.teacher, kTeacher, kContextT, kSumAbsT);
    __syncthreads();
    finish_pixels(step, mask.weight + (first - chunk.begin), scale, first, chunk.end, maps, int64_t{level.pixels},
                  state);
    __syncthreads();
    add_exponentials<float, Z::kPixels>(state);
    const Weights<Z> weights(step);
    const int next = first + Z::kPixels;
    loaded = features.whole(next, chunk.end);
    features.next_tile();
    features.for_rows([&](int i) {
      add_channel_sums<Z>(tile, i, weights, sum[i]);
      if (loaded) features.load_row(i, tile);
    });
    if (loaded) features.rewind();
  }
  float* out = chunk_sums<float>(level, chunk.image, chunk.index);
  write_sums<Z, kSums>(sum, level.channels, out);
  const int background = background_pixels(mask, chunk.end - chunk.begin);
  write_softmaxes<float, Z::kPixels>(state, background, out + int64_t{kSums} * level.channels);
}

}  // namespace fgd::cuda::nchw_wide

#define FGD_NCHW_WIDE_KERNEL(variant, T, columns, channels)                                 \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1)                      \
      fgd_forward_nchw_wide_##variant(const __grid_constant__ fgd::cuda::PyramidParams p) { \
    fgd::cuda::nchw_wide::forward<fgd::cuda::nchw_wide::Shape<T, columns, channels>>(p);    \
  }

// Forward over features whose pixels are dense (NCHW) with 257 to 1024 channels, student and teacher of one type of up
// to 32 bits: the steps of forward_nchw.cuh by the way of nchw_wide.cuh.
//
//   student, teacher  [N][C][P] with any strides of image and channel
//   maps              [N][kMaps][P]   out: the four logits of every pixel
//   chunk_sums        [N][chunks]     out: [kSums][C] and the numbers of the softmaxes
#include "forward_pixels.cuh"
#include "nchw_wide.cuh"

namespace fgd::cuda::nchw_wide {

template <class Z>
using Step = PixelStep<float, Z::kPixels>;

// Wk of student and teacher, zeros where there is none. In shared memory.
template <class Z>
FGD_DEVICE void load_keys(const Level& level, float2 (&keys)[Z::kMost]) {
  const float *s = static_cast<const float*>(level.key_s), *t = static_cast<const float*>(level.key_t);
  for (int c = threadIdx.x; c < Z::kMost; c += kThreads) {
    const bool there = c < level.channels;
    keys[c] = make_float2(s && there ? s[c] : 0.f, t && there ? t[c] : 0.f);
  }
}

// A row into the pixels' sums, and Σ|s| and Σ|t| of its channel.
template <class Z>
FGD_DEVICE void add_pixel_sums(const Tile<Z>& tile, int i, float2 key, float (&sum)[kSoftmaxes][Z::kV],
                               float (&channel_sum)[kSums]) {
  using T = typename Z::T;
  float s[Z::kV], t[Z::kV], part_s = 0, part_t = 0;
  unpack<T, Z::kV>(tile.student[i], s, T{});
  unpack<T, Z::kV>(tile.teacher[i], t, T{});
#pragma unroll
  for (int j = 0; j < Z::kV; ++j) {
    const float of_s = fabsf(s[j]), of_t = fabsf(t[j]);
    part_s = j == 0 ? of_s : part_s + of_s;
    part_t = j == 0 ? of_t : part_t + of_t;
    sum[kTeacher][j] = i == 0 ? of_t : sum[kTeacher][j] + of_t;
    sum[kStudent][j] = i == 0 ? of_s : sum[kStudent][j] + of_s;
    sum[kContextS][j] = i == 0 ? key.x * s[j] : sum[kContextS][j] + key.x * s[j];
    sum[kContextT][j] = i == 0 ? key.y * t[j] : sum[kContextT][j] + key.y * t[j];
  }
  channel_sum[kSumAbsS] += part_s;
  channel_sum[kSumAbsT] += part_t;
}

template <class Z>
FGD_DEVICE void add_channel_sums(const Tile<Z>& tile, int i, const float (&weight)[kWeights][Z::kV],
                                 const float (&rescale)[kSoftmaxes], float (&sum)[kSums]) {
  using T = typename Z::T;
  float s[Z::kV], t[Z::kV], part[kSums];
  unpack<T, Z::kV>(tile.student[i], s, T{});
  unpack<T, Z::kV>(tile.teacher[i], t, T{});
#pragma unroll
  for (int j = 0; j < Z::kV; ++j)
    accumulate(j == 0, s[j], t[j], weight[kWeightFg][j], weight[kWeightBg][j], weight[kWeightContextS][j],
               weight[kWeightContextT][j], part);
  add_part(rescale[kTeacher], rescale[kContextS], rescale[kContextT], part, sum);
}

template <class Z>
FGD_DEVICE void forward(const PyramidParams& p) {
  using T = typename Z::T;
  __shared__ ChunkMask mask;
  __shared__ __align__(16) Step<Z> step;
  __shared__ float2 keys[Z::kMost];
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Maps<Z> features(level, chunk.image);
  Tile<Z> tile;
  load_keys<Z>(level, keys);
  fill_mask(p, level, chunk.image, chunk.begin, chunk.end, mask);
  const float activation = inverse_ct<float>(p, level);
  float* maps = image_maps<float>(level, chunk.image);
  float sum[kChannels][kSums] = {};
  SoftmaxState<float> state;
  bool loaded = false;
  for (int first = chunk.begin; first < chunk.end; first += Z::kPixels) {
    if (!loaded) features.load(first, chunk.end, tile);
    float pixel_sums[kSoftmaxes][Z::kV];
    features.for_rows([&](int i) { add_pixel_sums<Z>(tile, i, keys[Z::channel(i)], pixel_sums, sum[i]); });
    share_sums<Z>(pixel_sums, step.part);
    __syncthreads();
    finish_pixels(step, mask.weight + (first - chunk.begin), activation, first, chunk.end, maps, int64_t{level.pixels},
                  state);
    __syncthreads();
    add_exponentials<float, Z::kPixels>(state);
    float weight[kWeights][Z::kV];
#pragma unroll
    for (int k = 0; k < kWeights; ++k) read_columns<Z>(step.weight[k], weight[k]);
    const int next = first + Z::kPixels;
    loaded = features.whole(next, chunk.end);
    const T *s = features.student.at + next, *t = features.teacher.at + next;
    features.for_rows([&](int i) {
      add_channel_sums<Z>(tile, i, weight, step.rescale, sum[i]);
      if (loaded) features.load_row(i, s, t, tile);
    });
  }
  float* out = chunk_sums<float>(level, chunk.image, chunk.index);
  write_sums<Z>(sum, level.channels, out);
  const int background = background_pixels(mask, chunk.end - chunk.begin);
  write_softmaxes<float, Z::kPixels>(state, background, out + int64_t{kSums} * level.channels);
}

}  // namespace fgd::cuda::nchw_wide

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, T, columns)                                                                                   \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::nchw_wide::forward<fgd::cuda::nchw_wide::Shape<T, columns>>(p);                                         \
  }
FGD_KERNEL(fgd_forward_nchw_wide_512_f32, float, 4)
FGD_KERNEL(fgd_forward_nchw_wide_512_f16, __half, 4)
FGD_KERNEL(fgd_forward_nchw_wide_512_bf16, __nv_bfloat16, 4)
FGD_KERNEL(fgd_forward_nchw_wide_1024_f32, float, 2)
FGD_KERNEL(fgd_forward_nchw_wide_1024_f16, __half, 2)
FGD_KERNEL(fgd_forward_nchw_wide_1024_bf16, __nv_bfloat16, 2)

// Forward over features whose channels are dense (channels_last) with 257 to 2048 channels, student and teacher of one
// type of up to 32 bits: the steps of forward_nchw.cuh by the way of nhwc_wide.cuh.
//
//   student, teacher  [N][P][C] with any strides of image and pixel
//   maps              [N][kMaps][P]   out: the four logits of every pixel
//   chunk_sums        [N][chunks]     out: [kSums][C] and the numbers of the softmaxes
#include "forward_pixels.cuh"
#include "nhwc_wide.cuh"

namespace fgd::cuda::nhwc_wide {

template <class T>
struct TileStep {  // in shared memory
  float part[kSoftmaxes][kGroups][kPixels<T, T>];
  alignas(16) float weight[kWeights][kMostPixels];
  float rescale[kSoftmaxes];
};

// Also Σ|s| and Σ|t| of the channels, while the absolute values are at hand.
template <class T>
FGD_DEVICE void share_pixel_sums(const Step<T>& step, const float (&key_s)[kChannels], const float (&key_t)[kChannels],
                                 float (&channel_sum)[kChannels][kSums], TileStep<T>& shared) {
  constexpr int kN = kPixels<T, T>;
  float sum[kSoftmaxes * kN];
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    float s[kChannels], t[kChannels];
    unpack_channels<T, kPacket<T>>(step.student[j], s);
    unpack_channels<T, kPacket<T>>(step.teacher[j], t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const float of_s = fabsf(s[i]), of_t = fabsf(t[i]), k_s = key_s[i] * s[i], k_t = key_t[i] * t[i];
      sum[kTeacher * kN + j] = i == 0 ? of_t : sum[kTeacher * kN + j] + of_t;
      sum[kStudent * kN + j] = i == 0 ? of_s : sum[kStudent * kN + j] + of_s;
      sum[kContextS * kN + j] = i == 0 ? k_s : sum[kContextS * kN + j] + k_s;
      sum[kContextT * kN + j] = i == 0 ? k_t : sum[kContextT * kN + j] + k_t;
      channel_sum[i][kSumAbsS] += of_s;
      channel_sum[i][kSumAbsT] += of_t;
    }
  }
  share_sums<T, kSoftmaxes>(sum, shared.part);
}

template <class T>
FGD_DEVICE void add_channel_sums(const Step<T>& step, const Place<T>& place, const TileStep<T>& shared,
                                 float (&sum)[kChannels][kSums]) {
  const float teacher = shared.rescale[kTeacher], context_s = shared.rescale[kContextS],
              context_t = shared.rescale[kContextT];
  if (teacher != 1.f || context_s != 1.f || context_t != 1.f)
#pragma unroll
    for (int i = 0; i < kChannels; ++i) rescale_sums(teacher, context_s, context_t, sum[i]);
  float weight[kWeights][kPixels<T, T>];
#pragma unroll
  for (int k = 0; k < kWeights; ++k) read_slot<T>(shared.weight[k], place.slot, weight[k]);
#pragma unroll
  for (int j = 0; j < kPixels<T, T>; ++j) {
    float s[kChannels], t[kChannels];
    unpack_channels<T, kPacket<T>>(step.student[j], s);
    unpack_channels<T, kPacket<T>>(step.teacher[j], t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i)
      accumulate(false, s[i], t[i], weight[kWeightFg][j], weight[kWeightBg][j], weight[kWeightContextS][j],
                 weight[kWeightContextT][j], sum[i]);
  }
}

template <class T>
FGD_DEVICE void forward(const PyramidParams& p) {
  __shared__ ChunkMask mask;
  __shared__ TileStep<T> shared;
  static_assert(sizeof(mask.run) >= kMostChannels * sizeof(float), "serves for the channels, where no mask is made");
  float* staged = reinterpret_cast<float*>(mask.run);
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Place<T> place(level.channels);
  Image<T> image(level, chunk, place);
  // A warp without work still meets the others at barriers.
  const bool busy = warp_index() * (32 / kGroup) < place.units * place.slots;
  Step<T> step, next;
  image.load(level, place, chunk.begin, chunk.end, step);
  fill_mask(p, level, chunk.image, chunk.begin, chunk.end, mask);
  auto key = [&](const void* from, int c) {
    return from && c < level.channels ? static_cast<const float*>(from)[c] : 0.f;
  };
  float key_s[kChannels], key_t[kChannels];
  spread_channels(place, staged, [&](int c) { return key(level.key_s, c); }, key_s);
  spread_channels(place, staged, [&](int c) { return key(level.key_t, c); }, key_t);
  float* maps = image_maps<float>(level, chunk.image);
  const int softmax = warp_index(), pixel = lane_index(), pixels = place.pixels();
  const float scale = logit_scale<float>(p, level, softmax);
  float sum[kChannels][kSums] = {};
  SoftmaxState<float> state;
  for (int first = chunk.begin; first < chunk.end; first += pixels) {
    if (busy) {
      share_pixel_sums(step, key_s, key_t, sum, shared);
      if (first + pixels < chunk.end) image.load(level, place, first + pixels, chunk.end, next);
    }
    __syncthreads();
    if (softmax < kSoftmaxes) {
      const bool valid = pixel < pixels && first + pixel < chunk.end;
      const float weight = valid ? mask.weight[first + pixel - chunk.begin] : 0.f;
      const float logit = sum_of_groups(place, shared.part[softmax], pixel);
      finish_logit<kMostPixels>(shared, softmax, pixel, logit, scale, weight, valid,
                                maps + int64_t{softmax} * level.pixels + first, state);
    }
    __syncthreads();
    add_exponentials<float, kMostPixels>(state);
    if (busy && place.slot < place.slots) add_channel_sums(step, place, shared, sum);
    step = next;
  }
  float* out = chunk_sums<float>(level, chunk.image, chunk.index);
  const int background = background_pixels(mask, chunk.end - chunk.begin);
  write_sums<T, kSums>(place, [&](int i, int k) { return sum[i][k]; }, level.channels, staged, out);
  write_softmaxes<float, kMostPixels>(state, background, out + int64_t{kSums} * level.channels);
}

}  // namespace fgd::cuda::nhwc_wide

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, T)                                                                                            \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::nhwc_wide::forward<T>(p);                                                                               \
  }
FGD_KERNEL(fgd_forward_nhwc_wide_f32, float)
FGD_KERNEL(fgd_forward_nhwc_wide_f16, __half)
FGD_KERNEL(fgd_forward_nhwc_wide_bf16, __nv_bfloat16)

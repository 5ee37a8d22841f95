// Forward over features whose channels are dense (channels_last), C <= 256, student and teacher of up to 32 bits each.
// The steps are those of forward_nchw.cu, but each warp has whole pixels, maxima and sums of its own; the block's warps
// are merged once, at the end of the chunk.
//
//   student, teacher  [N][P][C] with any strides of image and pixel
//   maps              [N][kMaps][P]   out: the four logits of every pixel
//   chunk_sums        [N][chunks]     out: [kSums][C] and the numbers of the softmaxes
#pragma once

#include "forward_pixels.cuh"
#include "nhwc.cuh"

namespace fgd::cuda::nhwc {

struct Keys {
  float student[kChannels], teacher[kChannels];
};

template <class S, class T>
FGD_DEVICE void load_keys(const Level& level, float* staged, Keys& keys) {
  auto key = [&](const void* from, int c) {
    return from && c < level.channels ? static_cast<const float*>(from)[c] : 0.f;
  };
  spread_channels<S, T>(staged, [&](int c) { return key(level.key_s, c); }, keys.student);
  spread_channels<S, T>(staged, [&](int c) { return key(level.key_t, c); }, keys.teacher);
}

// After the exchange over lanes, a lane holds the sum of one softmax and one pixel; lanes that differ in the upper bits
// only (`copy`) hold the same.
template <class S, class T>
struct LaneRole {
  static constexpr int kSums = kSoftmaxes * kPixels<S, T>, kCopies = 32 / kSums;
  int softmax, pixel, copy;
  FGD_DEVICE LaneRole() {
    const int sum = owned_sum<kSums, 1>(lane_index());
    softmax = sum / kPixels<S, T>;
    pixel = sum % kPixels<S, T>;
    copy = lane_index() / kSums;
  }
  FGD_DEVICE static int lane_of(int softmax) { return (softmax >> 1 & 1) | (softmax & 1) << 1; }
};

// Also Σ|s| and Σ|t| of the channels, while the absolute values are at hand.
template <class S, class T>
FGD_DEVICE float pixel_sum(const Step<S, T>& step, const Keys& keys, float (&channel_sum)[kChannels][kSums]) {
  float sum[kSoftmaxes * kPixels<S, T>];
#pragma unroll
  for (int j = 0; j < kPixels<S, T>; ++j) {
    float s[kChannels], t[kChannels], of[kSoftmaxes];
    unpack_channels<S, kPair<S, T>>(step.student[j], s);
    unpack_channels<T, kPair<S, T>>(step.teacher[j], t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const float of_s = fabsf(s[i]), of_t = fabsf(t[i]);
      of[kTeacher] = i == 0 ? of_t : of[kTeacher] + of_t;
      of[kStudent] = i == 0 ? of_s : of[kStudent] + of_s;
      of[kContextS] = i == 0 ? keys.student[i] * s[i] : of[kContextS] + keys.student[i] * s[i];
      of[kContextT] = i == 0 ? keys.teacher[i] * t[i] : of[kContextT] + keys.teacher[i] * t[i];
      channel_sum[i][kSumAbsS] += of_s;
      channel_sum[i][kSumAbsT] += of_t;
    }
#pragma unroll
    for (int k = 0; k < kSoftmaxes; ++k) sum[k * kPixels<S, T> + j] = of[k];
  }
  return sum_over_lanes<kSoftmaxes * kPixels<S, T>, 1, 32>(sum, lane_index());
}

template <class S, class T>
struct WarpWeights {  // in shared memory
  float value[kWeights][kPixels<S, T>];
};

// From a lane's logit to the weights of the warp's pixels; returns the factor of its softmax's sums so far.
template <class S, class T>
FGD_DEVICE float finish_step(const LaneRole<S, T>& role, float logit, float scale, float mask, bool valid,
                             SoftmaxState<float>& state, WarpWeights<S, T>& weights) {
  const float highest = max_over_lanes<4, LaneRole<S, T>::kSums>(valid ? logit : minus_infinity<float>());
  state.take(logit, highest, valid, scale);
  state.add();
  const float e = state.e.rounded();
  if (role.copy == 0 && role.softmax == kTeacher) {
    weights.value[kWeightFg][role.pixel] = e * mask;
    weights.value[kWeightBg][role.pixel] = mask > 0 ? 0.f : e;
  } else if (role.copy == 0 && role.softmax != kStudent) {
    weights.value[role.softmax == kContextS ? kWeightContextS : kWeightContextT][role.pixel] = e;
  }
  return state.factor.rounded();
}

template <class S, class T>
FGD_DEVICE void add_channel_sums(const Step<S, T>& step, const WarpWeights<S, T>& weights, float factor,
                                 float (&sum)[kChannels][kSums]) {
  const float teacher = __shfl_sync(kAllLanes, factor, LaneRole<S, T>::lane_of(kTeacher));
  const float context_s = __shfl_sync(kAllLanes, factor, LaneRole<S, T>::lane_of(kContextS));
  const float context_t = __shfl_sync(kAllLanes, factor, LaneRole<S, T>::lane_of(kContextT));
  if (teacher != 1.f || context_s != 1.f || context_t != 1.f)
#pragma unroll
    for (int i = 0; i < kChannels; ++i) rescale_sums(teacher, context_s, context_t, sum[i]);
#pragma unroll
  for (int j = 0; j < kPixels<S, T>; ++j) {
    float s[kChannels], t[kChannels];
    unpack_channels<S, kPair<S, T>>(step.student[j], s);
    unpack_channels<T, kPair<S, T>>(step.teacher[j], t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i)
      accumulate(false, s[i], t[i], weights.value[kWeightFg][j], weights.value[kWeightBg][j],
                 weights.value[kWeightContextS][j], weights.value[kWeightContextT][j], sum[i]);
  }
}

struct BlockSums {  // in shared memory
  float sum[kSums][kFastChannels];
  float maximum[kWarps][kSoftmaxes];
  double normaliser[kWarps][kSoftmaxes];
};

// Warp after warp adds its sums, brought to the block's maxima.
template <class S, class T>
FGD_DEVICE void write_block(const PyramidParams& p, const Level& level, const LaneRole<S, T>& role,
                            const SoftmaxState<float>& state, float (&sum)[kChannels][kSums], int background,
                            BlockSums& block, float* out) {
  const double normaliser = add_over_lanes<4, LaneRole<S, T>::kSums>(state.normaliser);
  const int warp = warp_index();
  if (role.copy == 0 && role.pixel == 0) {
    block.maximum[warp][role.softmax] = state.maximum;
    block.normaliser[warp][role.softmax] = normaliser;
  }
  __syncthreads();
  float maximum[kSoftmaxes];
#pragma unroll
  for (int q = 0; q < kSoftmaxes; ++q) {
    maximum[q] = block.maximum[0][q];
    for (int w = 1; w < kWarps; ++w) maximum[q] = larger(maximum[q], block.maximum[w][q]);
  }
  auto factor = [&](int w, int q) {
    return static_cast<float>(rescale(block.maximum[w][q], maximum[q], logit_scale<float>(p, level, q)));
  };
#pragma unroll
  for (int i = 0; i < kChannels; ++i)
    rescale_sums(factor(warp, kTeacher), factor(warp, kContextS), factor(warp, kContextT), sum[i]);
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp)
      for_channels<S, T>([&](int i, int c) {
#pragma unroll
        for (int k = 0; k < kSums; ++k) block.sum[k][c] = w == 0 ? sum[i][k] : block.sum[k][c] + sum[i][k];
      });
    __syncthreads();
  }
  const int channels = level.channels;
  for (int i = threadIdx.x; i < kSums * channels; i += kThreads) out[i] = block.sum[i / channels][i % channels];
  float* numbers = out + int64_t{kSums} * channels;
  if (threadIdx.x < kSoftmaxes) {
    const int q = threadIdx.x;
    const float scale = logit_scale<float>(p, level, q);
    float best = block.maximum[0][q];
    double total = 0;
    for (int w = 1; w < kWarps; ++w) best = larger(best, block.maximum[w][q]);
    for (int w = 0; w < kWarps; ++w) total += block.normaliser[w][q] * rescale(block.maximum[w][q], best, scale);
    write_softmax(q, best, total, numbers);
  } else if (threadIdx.x == kSoftmaxes) {
    numbers[kChunkBackground] = static_cast<float>(background);
  }
}

template <class S, class T>
FGD_DEVICE void forward(const PyramidParams& p) {
  __shared__ ChunkMask mask;
  __shared__ __align__(16) WarpWeights<S, T> weights[kWarps];
  __shared__ BlockSums block;
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Image<S, T> image(level, chunk.image);
  Step<S, T> step, next;
  image.load(level, pixel_of<S, T>(chunk.begin, 0), chunk.end, step);
  fill_mask(p, level, chunk.image, chunk.begin, chunk.end, mask);
  Keys keys;
  load_keys<S, T>(level, block.sum[0], keys);
  const LaneRole<S, T> role;
  const float scale = logit_scale<float>(p, level, role.softmax);
  float* map = image_maps<float>(level, chunk.image) + int64_t{role.softmax} * level.pixels;
  float sum[kChannels][kSums] = {}, written = 0;
  SoftmaxState<float> state;
  const int last = (chunk.end - chunk.begin + kTile - 1) / kTile * kSteps<S, T>;
  for (int i = 0; i < last; ++i) {
    const int first = pixel_of<S, T>(chunk.begin, i), turn = i % kSteps<S, T>;
    const float logit = pixel_sum<S, T>(step, keys, sum);
    if (i + 1 < last) image.load(level, pixel_of<S, T>(chunk.begin, i + 1), chunk.end, next);
    // A run's logits are written together, 32 bytes a softmax: each copy of a lane keeps those of one step.
    if (role.copy == turn) written = logit;
    const int mine = first + (role.copy - turn) * kPixels<S, T> + role.pixel;
    if (turn == kSteps<S, T> - 1 && mine < chunk.end) map[mine] = written;
    const float weight = mask.weight[first + role.pixel - chunk.begin];
    const float factor =
        finish_step<S, T>(role, logit, scale, weight, first + role.pixel < chunk.end, state, weights[warp_index()]);
    __syncwarp();
    add_channel_sums<S, T>(step, weights[warp_index()], factor, sum);
    __syncwarp();
    step = next;
  }
  const int background = background_pixels(mask, chunk.end - chunk.begin);
  write_block<S, T>(p, level, role, state, sum, background, block, chunk_sums<float>(level, chunk.image, chunk.index));
}

}  // namespace fgd::cuda::nhwc

// Forward over features of any types, layout and number of channels: the steps of forward_nchw.cu with one element a
// load. A tile is read twice, the second time from cache, and the sums of a chunk's channels lie in memory; each is
// updated by one and the same thread.
//
//   student, teacher  [N][C][P] with any strides; types known at run time
//   maps              [N][kMaps][P]   out: the four logits of every pixel
//   chunk_sums        [N][chunks]     out: [kSums][C] and the numbers of the softmaxes
#include "forward_pixels.cuh"
#include "generic.cuh"

namespace fgd::cuda::generic {

template <class A>
struct ForwardTile {
  const PixelStep<A, kTilePixels>& step;
  Plane<A> student, teacher;
  int channels, first, pixels;
  A* sums;  // [kSums][C]

  FGD_DEVICE void add(int c, int pixel, A (&sum)[kSums]) const {
    const A s = student(c, first + pixel), t = teacher(c, first + pixel);
    accumulate(false, s, t, step.weight[kWeightFg][pixel], step.weight[kWeightBg][pixel],
               step.weight[kWeightContextS][pixel], step.weight[kWeightContextT][pixel], sum);
    sum[kSumAbsS] += absolute(s);
    sum[kSumAbsT] += absolute(t);
  }
  FGD_DEVICE void update(int k, int c, A value, bool begin) const {
    A& sum = sums[int64_t{k} * channels + c];
    const int softmax = k == kSumFg || k == kSumBg ? kTeacher : k == kSumContextS ? kContextS : kContextT;
    const bool weighted = k == kSumFg || k == kSumBg || k == kSumContextS || k == kSumContextT;
    const A factor = weighted ? step.rescale[softmax] : A{1};
    sum = begin ? value : sum * factor + value;
  }
  // Lanes are pixels, warps channels.
  FGD_DEVICE void add_rows(bool begin) const {
    const int lane = lane_index(), k = owned_sum<kSums, 1>(lane);
    for (int c = warp_index(); c < channels; c += kWarps) {
      A sum[kSums] = {};
      if (lane < pixels) add(c, lane, sum);
      const A total = sum_over_lanes<kSums, 1, 32>(sum, lane);
      if (lane < kSums) update(k, c, total, begin);
    }
  }
  // Threads are channels.
  FGD_DEVICE void add_columns(bool begin) const {
    for (int c = threadIdx.x; c < channels; c += kThreads) {
      A sum[kSums] = {};
      for (int pixel = 0; pixel < pixels; ++pixel) add(c, pixel, sum);
#pragma unroll
      for (int k = 0; k < kSums; ++k) update(k, c, sum[k], begin);
    }
  }
};

template <class A>
FGD_DEVICE void forward(const PyramidParams& p) {
  __shared__ ChunkMask mask;
  __shared__ PixelStep<A, kTilePixels> step;
  const Chunk chunk = chunk_of_block(p);
  const Level& level = p.levels[chunk.level];
  const Plane<A> student(level.student, chunk.image, p.student_type),
      teacher(level.teacher, chunk.image, p.teacher_type);
  fill_mask(p, level, chunk.image, chunk.begin, chunk.end, mask);
  const A scale = logit_scale<A>(p, level, threadIdx.x / kTilePixels);
  A* maps = image_maps<A>(level, chunk.image);
  A* out = chunk_sums<A>(level, chunk.image, chunk.index);
  SoftmaxState<A> state;
  for (int first = chunk.begin; first < chunk.end; first += kTilePixels) {
    const int pixels = min(kTilePixels, chunk.end - first);
    auto logits = [&](int c, int pixel, A(&sum)[kSoftmaxes]) {
      const A s = student(c, first + pixel), t = teacher(c, first + pixel);
      sum[kTeacher] += absolute(t);
      sum[kStudent] += absolute(s);
      sum[kContextS] += element<A>(level.key_s, c) * s;
      sum[kContextT] += element<A>(level.key_t, c) * t;
    };
    sum_pixels<kSoftmaxes>(student.channels_dense(), level.channels, pixels, step.part, logits);
    __syncthreads();
    finish_pixels(step, mask.weight + (first - chunk.begin), scale, first, chunk.end, maps, int64_t{level.pixels},
                  state);
    __syncthreads();
    add_exponentials<A, kTilePixels>(state);
    const ForwardTile<A> tile{step, student, teacher, level.channels, first, pixels, out};
    if (student.channels_dense())
      tile.add_columns(first == chunk.begin);
    else
      tile.add_rows(first == chunk.begin);
  }
  const int background = background_pixels(mask, chunk.end - chunk.begin);
  write_softmaxes<A, kTilePixels>(state, background, out + int64_t{kSums} * level.channels);
}

}  // namespace fgd::cuda::generic

using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, A)                                                                                            \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ PyramidParams p) { \
    fgd::cuda::generic::forward<A>(p);                                                                                 \
  }
FGD_KERNEL(fgd_forward_generic_f32, float)
FGD_KERNEL(fgd_forward_generic_f64, double)

// The second and third step of a forward pass: the chunks of an image become one, in a fixed order and in float64.
//
//   merge    m = max of the chunks' maxima,  Z = Σ Z_chunk·exp((m_chunk - m)·scale)  for each softmax, whose scale is
//            1/(C·T) or 1 (logit_scale)
//            sums over pixels: Σ sum_chunk·exp((m_chunk - m)·scale)/Z, or Σ sum_chunk where nothing is weighted; in the
//            place of the first chunk's parts of Σp |A^S_s - A^S_t| and of Σp sign(A^S_s - A^S_t)·A^S_s, where A^S =
//            P·exp((z - m)/(C·T))/Z
//   finish   channels: A^C = C·softmax_c(Σp |F|/(P·T)) of both, their distance and its gradient, L_fg, L_bg, Σc D2
//            pixels: the four logits in `maps` become what layout.h says
//            GcBlocks: W1·ctx + b1, of the merged sums
//
// A block's job is one image's kMergeColumns columns of [kSums][C], or kMergePixels pixels; or, in `finish`, all
// channels, or rows of W1.
#include "gc.cuh"
#include "mask.cuh"

namespace fgd::cuda {

struct MergeJob {
  int level, image, index;
};

// Jobs of an image: `columns` blocks for channels, then one for every kMergePixels pixels.
FGD_DEVICE int column_blocks(const Level& level) { return blocks_of(int64_t{kSums} * level.channels, kMergeColumns); }
FGD_DEVICE int pixel_blocks(const Level& level) { return blocks_of(level.pixels, kMergePixels); }

template <class Jobs>
FGD_DEVICE MergeJob merge_job(const PyramidParams& p, const Jobs& jobs_of_image) {
  MergeJob job{0, 0, static_cast<int>(blockIdx.x)};
  for (int jobs = p.images * jobs_of_image(p.levels[0]); job.index >= jobs && job.level + 1 < p.level_count;
       jobs = p.images * jobs_of_image(p.levels[job.level])) {
    job.index -= jobs;
    ++job.level;
  }
  const int jobs = jobs_of_image(p.levels[job.level]);
  job.image = job.index / jobs;
  job.index -= job.image * jobs;
  return job;
}

FGD_DEVICE constexpr int softmax_of(int sum) {
  return sum == kSumFg || sum == kSumBg ? kTeacher
         : sum == kSumContextS          ? kContextS
         : sum == kSumContextT          ? kContextT
                                        : -1;
}

// A product that is rounded before anything is added: the signs of A_s - A_t see two numbers that were rounded alike,
// so that equal features have no gradient. A fused multiply-add would leave the rounding of one of them.
FGD_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }

template <class A>
struct ImageSoftmax {
  A maximum[kSoftmaxes];
  double normaliser[kSoftmaxes], background;
  FGD_DEVICE double normaliser_of(int q) const {  // 1 for -1; a register array wants constant indices
    double out = 1;
#pragma unroll
    for (int k = 0; k < kSoftmaxes; ++k) out = q == k ? normaliser[k] : out;
    return out;
  }
};

template <class A>
FGD_DEVICE const A* numbers_of_chunk(const Level& level, int image, int chunk) {
  return chunk_sums<A>(level, image, chunk) + int64_t{kSums} * level.channels;
}

// Every thread of the block gets all of it; all numbers of a chunk are on their way at once.
template <class A>
FGD_DEVICE ImageSoftmax<A> merge_softmaxes(const PyramidParams& p, const Level& level, int image) {
  __shared__ A highest[kWarps][kSoftmaxes];
  __shared__ double part[kWarps][kSoftmaxes + 1];
  ImageSoftmax<A> mine;
  A scale[kSoftmaxes];
#pragma unroll
  for (int q = 0; q < kSoftmaxes; ++q) scale[q] = logit_scale<A>(p, level, q);
#pragma unroll
  for (int q = 0; q < kSoftmaxes; ++q) mine.maximum[q] = minus_infinity<A>(), mine.normaliser[q] = 0;
  mine.background = 0;
  for (int i = threadIdx.x; i < level.chunks; i += kThreads) {
    const A* numbers = numbers_of_chunk<A>(level, image, i);
#pragma unroll
    for (int q = 0; q < kSoftmaxes; ++q) {
      const A of_chunk = numbers[q], best = larger(mine.maximum[q], of_chunk);
      const double before = product(mine.normaliser[q], rescale(mine.maximum[q], best, scale[q]));
      const double normaliser = static_cast<double>(numbers[kChunkNormaliser + q]) + numbers[kChunkNormaliserRest + q];
      mine.normaliser[q] = before + product(normaliser, rescale(of_chunk, best, scale[q]));
      mine.maximum[q] = best;
    }
    mine.background += numbers[kChunkBackground];
  }
#pragma unroll
  for (int q = 0; q < kSoftmaxes; ++q) {
    const A best = max_over_lanes<1, 32>(mine.maximum[q]);
    if (lane_index() == 0) highest[warp_index()][q] = best;
  }
  __syncthreads();
  ImageSoftmax<A> out;
#pragma unroll
  for (int q = 0; q <= kSoftmaxes; ++q) {
    double sum = mine.background;
    if (q < kSoftmaxes) {
      out.maximum[q] = highest[0][q];
      for (int w = 1; w < kWarps; ++w) out.maximum[q] = larger(out.maximum[q], highest[w][q]);
      sum = product(mine.normaliser[q], rescale(mine.maximum[q], out.maximum[q], scale[q]));
    }
    sum = add_over_lanes<1, 32>(sum);
    if (lane_index() == 0) part[warp_index()][q] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q <= kSoftmaxes; ++q) {
    double& sum = q < kSoftmaxes ? out.normaliser[q] : out.background;
    sum = part[0][q];
    for (int w = 1; w < kWarps; ++w) sum += part[w][q];
  }
  return out;
}

// One column a thread: no other one looks at the first chunk's number, which the result replaces.
template <class A>
FGD_DEVICE void merge_columns(const PyramidParams& p, const Level& level, int image, int first,
                              const ImageSoftmax<A>& softmax) {
  __shared__ double factor[kSoftmaxes][kThreads];
  const int column = first + threadIdx.x, columns = kSums * level.channels;
  const int q = softmax_of(column / level.channels);
  double sum = 0;
  for (int begin = 0; begin < level.chunks; begin += kThreads) {
    __syncthreads();
    if (begin + static_cast<int>(threadIdx.x) < level.chunks) {
      const A* numbers = numbers_of_chunk<A>(level, image, begin + threadIdx.x);
#pragma unroll
      for (int k = 0; k < kSoftmaxes; ++k)
        factor[k][threadIdx.x] = rescale(numbers[k], softmax.maximum[k], logit_scale<A>(p, level, k));
    }
    __syncthreads();
    if (column >= columns) continue;
    const int count = min(kThreads, level.chunks - begin);
    const A* from = chunk_sums<A>(level, image, begin) + column;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const double weight = q < 0 ? 1. : factor[q][i];
      sum += static_cast<double>(from[i * chunk_stride(level.channels)]) * weight;
    }
  }
  if (column < columns) chunk_sums<A>(level, image, 0)[column] = static_cast<A>(sum / softmax.normaliser_of(q));
}

// sign(A_s - A_t). Attentions of float32 features that differ by less than their normalisers may be wrong by are equal:
// those of maps with the same numbers in other places differ by the order of a sum.
template <class A>
FGD_DEVICE double sign_of(double student, double teacher) {
  const double x = student - teacher, equal = sizeof(A) < sizeof(double) ? 0x1p-48 * teacher : 0;
  return fabs(x) <= equal ? 0. : sign_of(x);
}

// A^S of a pixel. Both nets' are compared in float64: at high temperatures they differ in their last digits.
template <class A>
FGD_DEVICE double spatial_attention(double share, A logit, A maximum, A scale) {
  return product(share, Exponential<A>((logit - maximum) * scale).exact());
}

template <class A>
FGD_DEVICE void merge_pixels(const PyramidParams& p, const Level& level, int image, int block,
                             const ImageSoftmax<A>& softmax) {
  __shared__ double part[kWarps];
  const A* maps = image_maps<A>(level, image);
  const double share_s = level.pixels / softmax.normaliser[kStudent];
  const double share_t = level.pixels / softmax.normaliser[kTeacher];
  const A scale = logit_scale<A>(p, level, kStudent);
  double distance = 0, signed_sum = 0;
  const int end = min(level.pixels, (block + 1) * kMergePixels);
  for (int i = block * kMergePixels + threadIdx.x; i < end; i += kThreads) {
    const A logit_s = maps[int64_t{kStudent} * level.pixels + i], logit_t = maps[int64_t{kTeacher} * level.pixels + i];
    const double s = spatial_attention(share_s, logit_s, softmax.maximum[kStudent], scale);
    const double t = spatial_attention(share_t, logit_t, softmax.maximum[kTeacher], scale);
    distance += fabs(s - t);
    signed_sum += sign_of<A>(s, t) * s;
  }
  distance = add_over_block(distance, part);
  signed_sum = add_over_block(signed_sum, part);
  if (threadIdx.x != 0) return;
  double* out = level.pixel_parts + 2 * (int64_t{image} * pixel_blocks(level) + block);
  out[0] = distance;
  out[1] = signed_sum;
}

template <class A>
FGD_DEVICE void merge(const PyramidParams& p) {
  const MergeJob job = merge_job(p, [](const Level& level) { return column_blocks(level) + pixel_blocks(level); });
  if (p.done && blockIdx.x == 0 && threadIdx.x == 0) *p.done = 0;
  const Level& level = p.levels[job.level];
  const ImageSoftmax<A> softmax = merge_softmaxes<A>(p, level, job.image);
  if (job.index >= column_blocks(level)) {
    merge_pixels(p, level, job.image, job.index - column_blocks(level), softmax);
    return;
  }
  merge_columns(p, level, job.image, job.index * kMergeColumns, softmax);
  if (job.index != 0 || threadIdx.x != 0) return;
  double* numbers = level.image_numbers + int64_t{job.image} * kImageNumbers;
#pragma unroll
  for (int q = 0; q < kSoftmaxes; ++q) {
    numbers[kImageMaximum + q] = softmax.maximum[q];
    numbers[kImageNormaliser + q] = softmax.normaliser[q];
  }
  numbers[kImageBackground] = softmax.background;
}

// Σ over the pixel blocks of part 0 or 1.
FGD_DEVICE double sum_pixel_parts(const Level& level, int image, int which) {
  __shared__ double part[kWarps];
  const int blocks = pixel_blocks(level);
  const double* parts = level.pixel_parts + 2 * int64_t{image} * blocks + which;
  double sum = 0;
  for (int i = threadIdx.x; i < blocks; i += kThreads) sum += parts[2 * i];
  return add_over_block(sum, part);
}

// A^C_s and A^C_t as functions of the channel.
template <class A>
struct ChannelSoftmax {
  const A* sums;  // [C] Σp |F|
  double inverse_pt, maximum, scale;
  FGD_DEVICE ChannelSoftmax(const A* sums, int channels, double inverse_pt) : sums(sums), inverse_pt(inverse_pt) {
    __shared__ double part[kWarps];
    maximum = minus_infinity<double>();
    for (int c = threadIdx.x; c < channels; c += kThreads) maximum = fmax(maximum, logit(c));
    maximum = max_over_block(maximum, part);
    double sum = 0;
    for (int c = threadIdx.x; c < channels; c += kThreads) sum += exp(logit(c) - maximum);
    scale = channels / add_over_block(sum, part);
  }
  FGD_DEVICE double logit(int c) const { return product(sums[c], inverse_pt); }
  FGD_DEVICE double operator()(int c) const { return product(scale, exp(logit(c) - maximum)); }
};

template <class A>
FGD_DEVICE void write_stats(const Level& level, int image, const A* merged, const ChannelSoftmax<A>& student,
                            const ChannelSoftmax<A>& teacher, double mean_sign) {
  const int C = level.channels;
  A* stats = image_stats<A>(level, image);
  for (int c = threadIdx.x; c < C; c += kThreads) {
    const double s = student(c), t = teacher(c);
    stats[kStatAttention * C + c] = static_cast<A>(t);
    stats[kStatAttentionGrad * C + c] = static_cast<A>(s * (sign_of<A>(s, t) - mean_sign) * student.inverse_pt);
    stats[kStatShift * C + c] = 0;
    stats[kStatShiftGrad * C + c] = merged[kSumD * C + c];  // D1: the GcBlock makes a gradient of it
    stats[kStatContextS * C + c] = merged[kSumContextS * C + c];
    stats[kStatContextT * C + c] = merged[kSumContextT * C + c];
  }
}

template <class A>
FGD_DEVICE void finish_channels(const PyramidParams& p, const Level& level, int image) {
  __shared__ double part[kWarps];
  const int C = level.channels;
  const A* merged = chunk_sums<A>(level, image, 0);
  const double inverse_pt = 1 / (level.pixels * p.channel_temperature);
  const ChannelSoftmax<A> student(merged + kSumAbsS * C, C, inverse_pt), teacher(merged + kSumAbsT * C, C, inverse_pt);
  double fg = 0, bg = 0, distance = 0, squares = 0, signed_sum = 0;
  for (int c = threadIdx.x; c < C; c += kThreads) {
    const double s = student(c), t = teacher(c);
    fg += t * merged[kSumFg * C + c];
    bg += t * merged[kSumBg * C + c];
    distance += fabs(s - t);
    squares += merged[kSumD2 * C + c];
    signed_sum += sign_of<A>(s, t) * s;
  }
  fg = add_over_block(fg, part);
  bg = add_over_block(bg, part);
  distance = add_over_block(distance, part) + sum_pixel_parts(level, image, 0);
  squares = add_over_block(squares, part);
  write_stats<A>(level, image, merged, student, teacher, add_over_block(signed_sum, part) / C);
  if (threadIdx.x != 0) return;
  double* numbers = level.image_numbers + int64_t{image} * kImageNumbers;
  numbers[kImageTerms + kFg] = level.pixels * fg;
  numbers[kImageTerms + kBg] = level.pixels * bg / fmax(numbers[kImageBackground], 1.);
  numbers[kImageTerms + kAttention] = distance;
  numbers[kImageTerms + kGlobal] = squares;  // for now: terms.cu adds what r does, or drops it
}

template <class A>
FGD_DEVICE void finish_pixels(const PyramidParams& p, const Level& level, int image, int block) {
  __shared__ ChunkMask mask;
  const int begin = block * kMergePixels, end = min(level.pixels, begin + kMergePixels);
  fill_mask(p, level, image, begin, end, mask);
  const double* numbers = level.image_numbers + int64_t{image} * kImageNumbers;
  const double mean_sign = sum_pixel_parts(level, image, 1) / level.pixels;
  const A outside = static_cast<A>(-1. / fmax(numbers[kImageBackground], 1.));
  const A to_spatial = logit_scale<A>(p, level, kStudent);
  A maximum[kSoftmaxes];
  double share[kSoftmaxes];
#pragma unroll
  for (int q = 0; q < kSoftmaxes; ++q) {
    maximum[q] = static_cast<A>(numbers[kImageMaximum + q]);
    const bool attention = q == kTeacher || q == kStudent;
    share[q] = (attention ? level.pixels : 1) / numbers[kImageNormaliser + q];
  }
  A* map[kMaps];
#pragma unroll
  for (int k = 0; k < kMaps; ++k) map[k] = image_maps<A>(level, image) + int64_t{k} * level.pixels;
  for (int i = begin + threadIdx.x; i < end; i += kThreads) {
    const double t = spatial_attention(share[kTeacher], map[kTeacher][i], maximum[kTeacher], to_spatial);
    const double s = spatial_attention(share[kStudent], map[kStudent][i], maximum[kStudent], to_spatial);
    const float weight = mask.weight[i - begin];
    const A context_s = exponential(map[kContextS][i] - maximum[kContextS]);
    const A context_t = exponential(map[kContextT][i] - maximum[kContextT]);
    map[kMapContextS][i] = static_cast<A>(share[kContextS]) * context_s;
    map[kMapContextT][i] = static_cast<A>(share[kContextT]) * context_t;
    map[kMapFocal][i] = static_cast<A>(t) * (weight > 0 ? static_cast<A>(weight) : outside);
    map[kMapAttention][i] = static_cast<A>(s * (sign_of<A>(s, t) - mean_sign)) * to_spatial;
  }
}

// Rows of W1·ctx + b1 of a net of a level.
template <class A>
FGD_DEVICE void finish_hidden(const FinishParams& p, int block) {
  const int images = p.pyramid.images, l = level_of_block(p.gc, p.pyramid.level_count, block);
  const auto& gc = p.gc[l];
  const Level& level = p.pyramid.levels[l];
  int index = block - gc.first_block;
  const int of_student = gc_row_blocks(gc.hidden[0], images);
  const bool teacher = index >= of_student;
  if (teacher) index -= of_student;
  const auto input = [&](int net, Sum context) {
    return HiddenInput<A>{static_cast<const A*>(gc.w1[net]),
                          static_cast<const A*>(gc.b1[net]),
                          chunk_sums<A>(level, 0, 0) + int64_t{context} * level.channels,
                          level.chunks * chunk_stride(level.channels),
                          static_cast<A*>(gc.hidden_sums[net]),
                          level.channels,
                          gc.hidden[net],
                          images};
  };
  write_hidden(teacher ? input(1, kSumContextT) : input(0, kSumContextS), index);
}

template <class A>
FGD_DEVICE void finish(const FinishParams& params) {
  const PyramidParams& p = params.pyramid;
  const int behind = blockIdx.x - params.pyramid_blocks;
  if (behind >= 0) return finish_hidden<A>(params, behind);
  const MergeJob job = merge_job(p, [](const Level& level) { return 1 + pixel_blocks(level); });
  const Level& level = p.levels[job.level];
  if (job.index == 0)
    finish_channels<A>(p, level, job.image);
  else
    finish_pixels<A>(p, level, job.image, job.index - 1);
}

}  // namespace fgd::cuda

using fgd::cuda::FinishParams;
using fgd::cuda::PyramidParams;

#define FGD_KERNEL(name, Params, step)                                                                          \
  extern "C" __global__ void __launch_bounds__(fgd::cuda::kThreads, 1) name(const __grid_constant__ Params p) { \
    step(p);                                                                                                    \
  }
FGD_KERNEL(fgd_merge_f32, PyramidParams, fgd::cuda::merge<float>)
FGD_KERNEL(fgd_merge_f64, PyramidParams, fgd::cuda::merge<double>)
FGD_KERNEL(fgd_finish_f32, FinishParams, fgd::cuda::finish<float>)
FGD_KERNEL(fgd_finish_f64, FinishParams, fgd::cuda::finish<double>)

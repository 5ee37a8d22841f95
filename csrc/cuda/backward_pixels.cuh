// The gradient of one pair (s, t), d = s - t, with upstream gradients g_fg .. g_gl (the terms' weights and 1/N
// included):
//
//   ∂L/∂s[c,p] = 2·d·A^C_t[c]·A^S_t[p]·(g_fg fg[p] + g_bg [fg[p]=0]/n_bg)                    feature loss
//              + 2·g_gl·(d + r[c])                                                           global loss, direct
//              + g_at·sign(s)·( h_S[p] + h_C[c] )                                            attention loss
//              + q[p]·g_ctx[c] + Wk_s[c]·q[p]·(u[p] - ū),  u[p] = Σc s[c,p]·g_ctx[c]         global loss, context
//   ∂L/∂Wk_s[c] = Σp f[p]·s[c,p],  f[p] = q[p]·(u[p] - ū), and the same of the teacher
//
// Where one pixel has nearly all the weight, its u - ū is rounding alone, far above what the sum is worth. But Σ f = 0:
// a pixel p* with q > 3/4, the peak, is left out, and what it would add is -s[c,p*]·(the sum of the others' f), which
// is exact. Without a peak the same is done with ctx[c] in place of s[c,p*]: it changes nothing but the roundings. So a
// chunk leaves, of each net, the sums over its pixels without the peak's, the sum of their f, and the peak if it has
// it; gc_backward.cu does the rest.
//
// and the middle of a tile: from the parts of u to the pixels' factors. maps and stats are what forward saved.
#pragma once

#include "device.cuh"

namespace fgd::cuda {

// Per pixel.
enum Factor : int {
  kFactorFeature,  // of d·A^C_t
  kFactorSign,     // g_at·h_S
  kFactorContext,  // q_s
  kFactorKey,      // f_s, for ∂L/∂s
  kFactorKeyS,     // f_s, 0 for the peak: for ∂L/∂Wk_s
  kFactorKeyT,     // f_t, 0 for the peak: for ∂L/∂Wk_t
  kFactors
};

// Per channel.
template <class A>
struct ChannelFactors {
  A attention, shift, sign, context_s, context_t, key;
};

template <class A>
struct Upstream {
  A fg, bg, attention, direct;  // 2·g_fg, -2·g_bg, g_at, 2·g_gl
  FGD_DEVICE Upstream(const PyramidParams& p, const Level& level) {
    const A* upstream = static_cast<const A*>(p.upstream);
    auto at = [&](int term) { return static_cast<A>(upstream[term] * level.weights[term]); };
    fg = 2 * at(kFg);
    bg = -2 * at(kBg);
    attention = at(kAttention);
    direct = level.context_grad ? 2 * at(kGlobal) : A{0};
  }
};

template <class A>
FGD_DEVICE const A* context_grad(const PyramidParams& p, const Level& level, int image, int net) {
  const A* grads = static_cast<const A*>(level.context_grad);
  return grads ? grads + (int64_t{net} * p.images + image) * level.channels : nullptr;
}

// Zeros for a channel that is not there.
template <class A>
FGD_DEVICE ChannelFactors<A> channel_factors(const PyramidParams& p, const Level& level, int image,
                                             const Upstream<A>& up, int c) {
  if (c >= level.channels) return {};
  const int C = level.channels;
  const A* stats = image_stats<A>(level, image);
  const A *grad_s = context_grad<A>(p, level, image, 0), *grad_t = context_grad<A>(p, level, image, 1);
  return {stats[kStatAttention * C + c],
          grad_s ? up.direct * stats[kStatShift * C + c] : A{0},
          up.attention * stats[kStatAttentionGrad * C + c],
          grad_s ? grad_s[c] : A{0},
          grad_s ? grad_t[c] : A{0},
          level.key_s ? static_cast<const A*>(level.key_s)[c] : A{0}};
}

// Field after field, so that a channel's number is all that has to be shared: spread(field, values) gives this thread
// that field of its channels.
template <int kCount, class F>
FGD_DEVICE void load_factors(ChannelFactors<float> (&channels)[kCount], const F& spread) {
  using Factors = ChannelFactors<float>;
  constexpr float Factors::* kFields[] = {&Factors::attention, &Factors::shift,     &Factors::sign,
                                          &Factors::context_s, &Factors::context_t, &Factors::key};
#pragma unroll
  for (int k = 0; k < 6; ++k) {
    float values[kCount];
    spread(kFields[k], values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) channels[i].*kFields[k] = values[i];
  }
}

template <class A>
FGD_DEVICE A gradient(A s, A d, const ChannelFactors<A>& c, A direct, A feature, A sign, A context, A key) {
  const A smooth = d * (c.attention * feature + direct) + c.shift;
  return smooth + sign_times(s, sign + c.sign) + c.context_s * context + c.key * key;
}

// ū = g_ctx·ctx of an image; for all threads of a block. Owner: a type that belongs to one kernel alone. A `part` that
// several kernels of a file share is the file's in PTX, not a kernel's; so the wide ones spilled on sm_75.
template <class A, class Owner = A>
FGD_DEVICE A context_mean(const PyramidParams& p, const Level& level, int image, int net) {
  __shared__ double part[kWarps];
  const A* grad = context_grad<A>(p, level, image, net);
  if (!grad) return 0;
  const A* context = image_stats<A>(level, image) + (net ? kStatContextT : kStatContextS) * level.channels;
  double sum = 0;
  for (int c = threadIdx.x; c < level.channels; c += kThreads) sum += static_cast<double>(grad[c]) * context[c];
  return static_cast<A>(add_over_block(sum, part));
}

template <class A, int kPixels>
struct FactorStep {  // in shared memory
  A part[2][kWarps][kPixels];
  A factor[kFactors][kPixels];
};

// What one thread of (net, pixel) needs of a pixel: loaded a tile ahead and before the tile's own loads, so that
// nothing between these and the next tile waits for them.
template <class A>
struct PixelMaps {
  A context = 0, focal = 0, attention = 0;
  // pixel < end
  FGD_DEVICE void load(const A* maps, int64_t size, int net, int pixel) {
    context = maps[(net ? kMapContextT : kMapContextS) * size + pixel];
    if (net) return;
    focal = maps[kMapFocal * size + pixel];
    attention = maps[kMapAttention * size + pixel];
  }
  // Waits, once and by the whole warp, for the first tile's numbers. The compiler cannot tell a loop's first turn from
  // the others: loads that are under way where it begins would be waited for in each, with whatever shares their
  // scoreboard.
  FGD_DEVICE void settle() {
    const int lane = lane_index();
    context = __shfl_sync(kAllLanes, context, lane);
    focal = __shfl_sync(kAllLanes, focal, lane);
    attention = __shfl_sync(kAllLanes, attention, lane);
  }
};

template <class A>
FGD_DEVICE A feature_factor(const Upstream<A>& up, A focal) {
  return focal * (focal > 0 ? up.fg : up.bg);
}

// What a thread of (net, pixel) keeps for ∂L/∂Wk: Σ f, and the peak.
template <class A>
struct KeySum {
  A total = 0;
  int peak = -1;
  // f of a pixel, or 0 for the peak; where f is not finite, NaN.
  FGD_DEVICE A add(A context, A f, int pixel) {
    const bool is_peak = context > A{0.75};
    const A rest = is_peak ? f - f : f;
    total += rest;
    if (is_peak) peak = pixel;
    return rest;
  }
};

// f for ∂L/∂s: a pixel that has all of the context's weight is ctx, its u is ū, and what is left of u - ū is rounding.
template <class A>
FGD_DEVICE A student_factor(A context, A f) {
  return context == A{1} ? f - f : f;  // where f is not finite, NaN
}

// From u of one net to a pixel's factors, factor[kFactors][..]; mean: ū, at: the pixel in its image.
template <class A, class Factors>
FGD_DEVICE void finish_factor(Factors& factor, const Upstream<A>& up, const PixelMaps<A>& maps, int net, int pixel, A u,
                              A mean, int at, KeySum<A>& sum) {
  const A f = maps.context * (u - mean);
  factor[net ? kFactorKeyT : kFactorKeyS][pixel] = sum.add(maps.context, f, at);
  if (net) return;
  factor[kFactorKey][pixel] = student_factor(maps.context, f);
  factor[kFactorFeature][pixel] = feature_factor(up, maps.focal);
  factor[kFactorSign][pixel] = up.attention * maps.attention;
  factor[kFactorContext][pixel] = maps.context;
}

// Between two barriers; threads -> (net, pixel). mean: ū of this thread's net; first: the tile's first pixel.
template <class A, int kPixels>
FGD_DEVICE void finish_factors(FactorStep<A, kPixels>& step, const Upstream<A>& up, const PixelMaps<A>& maps, A mean,
                               int first, KeySum<A>& sum) {
  if (threadIdx.x >= 2 * kPixels) return;
  const int net = threadIdx.x / kPixels, pixel = threadIdx.x % kPixels;
  A u = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) u += step.part[net][w][pixel];
  finish_factor(step.factor, up, maps, net, pixel, u, mean, first + pixel, sum);
}

// Where a chunk's parts of ∂L/∂Wk go: [2][C], then KeyNumbers; null if nobody asked.
template <class A>
FGD_DEVICE A* key_parts(const Level& level, const Chunk& chunk) {
  A* parts = static_cast<A*>(level.chunk_sums);
  return parts ? parts + (int64_t{chunk.image} * level.chunks + chunk.index) * key_stride(level.channels) : nullptr;
}

// By the threads of finish_factors, the first warp's at least.
template <class A, int kPixels>
FGD_DEVICE void write_key_numbers(const KeySum<A>& sum, int channels, A* parts) {
  if (!parts || threadIdx.x >= (kPixels < 16 ? 32 : 2 * kPixels)) return;
  const A total = add_over_lanes<1, kPixels>(sum.total);
  const int net = threadIdx.x / kPixels, peak = max_over_lanes<1, kPixels>(sum.peak);
  auto* numbers = reinterpret_cast<KeyNumbers<A>*>(parts + 2 * channels);
  if (net < 2 && threadIdx.x % kPixels == 0) numbers->total[net] = total, numbers->peak[net] = peak;
}

}  // namespace fgd::cuda

// What every kernel uses: packets of 16 bytes, sums over lanes and blocks, and the way from a block to its work.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "params.h"

namespace fgd::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarps = kThreads / 32;

#define FGD_DEVICE __device__ __forceinline__

FGD_DEVICE int lane_index() { return threadIdx.x & 31; }
FGD_DEVICE int warp_index() { return threadIdx.x >> 5; }

FGD_DEVICE float exponential(float x) { return expf(x); }
FGD_DEVICE double exponential(double x) { return exp(x); }
FGD_DEVICE float absolute(float x) { return fabsf(x); }
FGD_DEVICE double absolute(double x) { return fabs(x); }
// A NaN in `a` stays out, as in fmaxf: it reaches the result through the sums of exponentials.
FGD_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
FGD_DEVICE double larger(double a, double b) { return fmax(a, b); }
FGD_DEVICE int larger(int a, int b) { return max(a, b); }

// exp(x) for x <= 0 with more digits than a float near 1 has room for, where attentions of high temperatures differ:
// rounded() and exact(), which is 0 below e^-87.
template <class A>
struct Exponential;

// e^x = (1 + part)·scale,  x = k·ln 2 + r,  |r| <= ln 2 / 2,  part = e^r - 1,  scale = 2^k
template <>
struct Exponential<float> {
  float part = 0, scale = 0;
  Exponential() = default;
  FGD_DEVICE explicit Exponential(float x) {
    constexpr float kShift = 12582912.f + 127.f;  // what is added to it is rounded, and k + 127 its last bits
    const float shifted = fmaf(x, 1.44269504f, kShift), k = shifted - kShift;
    const float r = fmaf(k, -1.42860677e-6f, fmaf(k, -0.693145752f, x));  // ln 2 in two pieces
    float q = 0.000198993337f;
    q = fmaf(q, r, 0.00139336882f);
    q = fmaf(q, r, 0.00833329838f);
    q = fmaf(q, r, 0.041666463f);
    q = fmaf(q, r, 0.166666672f);
    q = fmaf(q, r, 0.5f);
    part = fmaf(r * r, q, r);
    scale = x < -87.f ? 0.f : __int_as_float(__float_as_int(shifted) << 23);
    if (x < -87.f) part = 0;
  }
  FGD_DEVICE float rounded() const { return fmaf(part, scale, scale); }
  FGD_DEVICE double exact() const { return (1. + part) * scale; }
};

template <>
struct Exponential<double> {
  double value = 0;
  Exponential() = default;
  FGD_DEVICE explicit Exponential(double x) : value(exp(x)) {}
  FGD_DEVICE double rounded() const { return value; }
  FGD_DEVICE double exact() const { return value; }
};

// exp((from - to)·scale) for maxima that may be -inf, and that are equal if both are.
template <class A>
FGD_DEVICE Exponential<A> shrinkage(A from, A to, A scale) {
  return Exponential<A>((from == to ? A{0} : from - to) * scale);
}
template <class A>
FGD_DEVICE double rescale(A from, A to, A scale) {
  return shrinkage(from, to, scale).exact();
}

template <class A>
FGD_DEVICE A minus_infinity() {
  return static_cast<A>(-INFINITY);
}

// sign(s)·x; 0 where s is 0.
template <class A>
FGD_DEVICE A sign_times(A s, A x) {
  return s == A{0} ? A{0} : x * copysign(A{1}, s);
}

// NaN for NaN.
template <class A>
FGD_DEVICE A sign_of(A x) {
  return x > 0 ? A{1} : x < 0 ? A{-1} : x;
}

// What threads read in place of channels that are not there: cheaper than a branch or a factor at every use.
static __device__ const uint4 kZeros[4] = {};
template <class T>
FGD_DEVICE const T* zeros_of() {
  return reinterpret_cast<const T*>(kZeros);
}

// ---- packets -------------------------------------------------------------------------------------------------------

template <class T>
constexpr int kPacket = 16 / sizeof(T);  // elements

// Elements of each of two maps that a thread reads at a time: a packet of the wider type.
template <class S, class T>
constexpr int kPair = kPacket<S> < kPacket<T> ? kPacket<S> : kPacket<T>;

// V elements: 16 bytes, or 8.
template <class T, int V>
using Packet = std::conditional_t<sizeof(T) * V == 16, uint4, uint2>;

FGD_DEVICE void split(const uint4& packet, unsigned (&word)[4]) {
  word[0] = packet.x, word[1] = packet.y, word[2] = packet.z, word[3] = packet.w;
}
FGD_DEVICE void split(const uint2& packet, unsigned (&word)[2]) { word[0] = packet.x, word[1] = packet.y; }
FGD_DEVICE uint4 join(const unsigned (&word)[4]) { return {word[0], word[1], word[2], word[3]}; }
FGD_DEVICE uint2 join(const unsigned (&word)[2]) { return {word[0], word[1]}; }

FGD_DEVICE void unpack_word(unsigned word, float* out, float) { out[0] = __uint_as_float(word); }
FGD_DEVICE void unpack_word(unsigned word, float* out, __nv_bfloat16) {
  out[0] = __uint_as_float(word << 16);
  out[1] = __uint_as_float(word & 0xffff0000u);
}
FGD_DEVICE void unpack_word(unsigned word, float* out, __half) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
  out[0] = pair.x;
  out[1] = pair.y;
}
FGD_DEVICE unsigned pack_word(const float* in, float) { return __float_as_uint(in[0]); }
FGD_DEVICE unsigned pack_word(const float* in, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(in[0], in[1]);
  return *reinterpret_cast<const unsigned*>(&pair);
}
FGD_DEVICE unsigned pack_word(const float* in, __half) {
  const __half2 pair = __floats2half2_rn(in[0], in[1]);
  return *reinterpret_cast<const unsigned*>(&pair);
}

template <class T, int V>
FGD_DEVICE void unpack(const Packet<T, V>& packet, float (&out)[V], T) {
  unsigned word[V * sizeof(T) / 4];
  split(packet, word);
#pragma unroll
  for (int i = 0; i < static_cast<int>(V * sizeof(T) / 4); ++i) unpack_word(word[i], out + i * 4 / sizeof(T), T{});
}
template <class T, int V>
FGD_DEVICE Packet<T, V> pack(const float (&in)[V], T) {
  unsigned word[V * sizeof(T) / 4];
#pragma unroll
  for (int i = 0; i < static_cast<int>(V * sizeof(T) / 4); ++i) word[i] = pack_word(in + i * 4 / sizeof(T), T{});
  return join(word);
}

template <int V, class T>
FGD_DEVICE Packet<T, V> load_packet(const T* from) {
  return __ldg(reinterpret_cast<const Packet<T, V>*>(from));
}
template <class P>
FGD_DEVICE void store_packet(void* to, const P& packet) {
  __stcg(reinterpret_cast<P*>(to), packet);
}

// The bits of up to `count` elements, zeros behind them: where a packet is not aligned or reaches over an end.
template <int V, class T>
FGD_DEVICE Packet<T, V> gather_packet(const T* from, int count) {
  unsigned word[V * sizeof(T) / 4] = {};
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i >= count) continue;
    if constexpr (sizeof(T) == 4)
      word[i] = __ldg(reinterpret_cast<const unsigned*>(from) + i);
    else
      word[i / 2] |= static_cast<unsigned>(__ldg(reinterpret_cast<const unsigned short*>(from) + i)) << (i % 2 * 16);
  }
  return join(word);
}

// The same, of elements of two bytes in pairs of four, which are aligned: count is even.
template <int V, class T>
FGD_DEVICE Packet<T, V> gather_words(const T* from, int count) {
  if constexpr (sizeof(T) == 4)
    return gather_packet<V>(from, count);
  else
    return gather_packet<V / 2>(reinterpret_cast<const float*>(from), count / 2);
}

// A whole packet wherever it lies; elements of two bytes from the words around it: where it does not begin with a word,
// the element before it and the one behind it are read, too.
template <int V, class T>
FGD_DEVICE Packet<T, V> shifted_packet(const T* from) {
  if constexpr (sizeof(T) == 4) {
    return gather_packet<V>(from, V);
  } else {
    constexpr int kWords = V / 2;
    const uintptr_t address = reinterpret_cast<uintptr_t>(from);
    const unsigned* words = reinterpret_cast<const unsigned*>(address & ~uintptr_t{3});
    const unsigned shift = (address & 2) * 8;
    unsigned read[kWords + 1], word[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) read[i] = __ldg(words + i);
    read[kWords] = shift ? __ldg(words + kWords) : 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = __funnelshift_r(read[i], read[i + 1], shift);
    return join(word);
  }
}

template <int V, class T>
FGD_DEVICE void scatter_packet(T* to, const Packet<T, V>& packet, int count) {
  unsigned word[V * sizeof(T) / 4];
  split(packet, word);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i >= count) continue;
    if constexpr (sizeof(T) == 4)
      reinterpret_cast<unsigned*>(to)[i] = word[i];
    else
      reinterpret_cast<unsigned short*>(to)[i] = static_cast<unsigned short>(word[i / 2] >> (i % 2 * 16));
  }
}

// As gather_words.
template <int V, class T>
FGD_DEVICE void scatter_words(T* to, const Packet<T, V>& packet, int count) {
  if constexpr (sizeof(T) == 4)
    scatter_packet<V>(to, packet, count);
  else
    scatter_packet<V / 2>(reinterpret_cast<float*>(to), packet, count / 2);
}

// As shifted_packet, but nothing beside the packet is written.
template <int V, class T>
FGD_DEVICE void store_shifted(T* to, const Packet<T, V>& packet) {
  if (sizeof(T) == 4 || reinterpret_cast<uintptr_t>(to) % 4 == 0) return scatter_words<V>(to, packet, V);
  unsigned word[V * sizeof(T) / 4];
  split(packet, word);
  unsigned short* halves = reinterpret_cast<unsigned short*>(to);
  unsigned* words = reinterpret_cast<unsigned*>(halves + 1);
  halves[0] = static_cast<unsigned short>(word[0]);
#pragma unroll
  for (int i = 0; i + 1 < V / 2; ++i) words[i] = __funnelshift_r(word[i], word[i + 1], 16);
  halves[V - 1] = static_cast<unsigned short>(word[V / 2 - 1] >> 16);
}

// ---- sums over lanes -----------------------------------------------------------------------------------------------

// N sums over the lanes that differ in the bits from kBit up to kEnd, by halving exchange: every lane gives half of
// its values away and keeps the other half, N/2 + N/4 + .. shuffles in place of N·log2(lanes). Lane `lane` is left
// with the sum number owned_sum<N, kBit>(lane).
template <int N, int kBit, int kEnd, class A>
FGD_DEVICE A sum_over_lanes(const A (&value)[N], int lane) {
  if constexpr (kBit == kEnd) {
    static_assert(N == 1, "more sums than lanes");
    return value[0];
  } else if constexpr (N == 1) {
    const A sum[1] = {value[0] + __shfl_xor_sync(kAllLanes, value[0], kBit)};
    return sum_over_lanes<1, 2 * kBit, kEnd>(sum, lane);
  } else {
    const bool upper = lane & kBit;
    A half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const A mine = upper ? value[i + N / 2] : value[i], other = upper ? value[i] : value[i + N / 2];
      half[i] = mine + __shfl_xor_sync(kAllLanes, other, kBit);
    }
    return sum_over_lanes<N / 2, 2 * kBit, kEnd>(half, lane);
  }
}

template <int N, int kBit>
FGD_DEVICE int owned_sum(int lane) {
  int index = 0;
#pragma unroll
  for (int half = N / 2, bit = kBit; half >= 1; half /= 2, bit *= 2) index += lane & bit ? half : 0;
  return index;
}

template <int kBit, int kEnd, class A>
FGD_DEVICE A max_over_lanes(A x) {
#pragma unroll
  for (int bit = kBit; bit < kEnd; bit *= 2) x = larger(x, __shfl_xor_sync(kAllLanes, x, bit));
  return x;
}

// Over each kLanes neighbouring lanes, NaN left out. A whole warp does it in one instruction where there is one: floats
// are ordered like integers of their bits if those of negative ones are turned round.
template <int kLanes, class A>
FGD_DEVICE A highest_of(A x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (kLanes == 32 && sizeof(A) == 4) {
    auto turned = [](int bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
    const int bits = turned(__float_as_int(larger(x, minus_infinity<A>())));
    return __int_as_float(turned(__reduce_max_sync(kAllLanes, bits)));
  }
#endif
  return max_over_lanes<1, kLanes>(x);
}

template <int kBit, int kEnd, class A>
FGD_DEVICE A add_over_lanes(A x) {
#pragma unroll
  for (int bit = kBit; bit < kEnd; bit *= 2) x += __shfl_xor_sync(kAllLanes, x, bit);
  return x;
}

// Over a block, in a fixed order; every thread gets the result. scratch: [kWarps].
template <class A>
FGD_DEVICE A add_over_block(A x, A* scratch) {
  x = add_over_lanes<1, 32>(x);
  __syncthreads();
  if (lane_index() == 0) scratch[warp_index()] = x;
  __syncthreads();
  x = scratch[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) x += scratch[w];
  return x;
}

template <class A>
FGD_DEVICE A max_over_block(A x, A* scratch) {
  x = max_over_lanes<1, 32>(x);
  __syncthreads();
  if (lane_index() == 0) scratch[warp_index()] = x;
  __syncthreads();
  x = scratch[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) x = larger(x, scratch[w]);
  return x;
}

// ---- from a block to its work --------------------------------------------------------------------------------------

// The last level that begins at or before a block.
template <class Levels>
FGD_DEVICE int level_of_block(const Levels& levels, int count, int block) {
  int level = 0;
  for (int l = 1; l < count; ++l)
    if (block >= levels[l].first_block) level = l;
  return level;
}

// A block of the pass over the features: a chunk of an image of a level.
struct Chunk {
  int level, image, index;  // index: of the chunk in its image
  int begin, end;           // pixels
};

FGD_DEVICE Chunk chunk_of_block(const PyramidParams& p) {
  Chunk chunk;
  chunk.level = level_of_block(p.levels, p.level_count, blockIdx.x);
  const Level& level = p.levels[chunk.level];
  const int job = blockIdx.x - level.first_block;
  chunk.image = job / level.chunks;
  chunk.index = job - chunk.image * level.chunks;
  chunk.begin = chunk.index * level.chunk_pixels;
  chunk.end = min(level.pixels, chunk.begin + level.chunk_pixels);
  return chunk;
}

template <class T>
FGD_DEVICE T* image_data(const Features& f, int image) {
  return static_cast<T*>(f.data) + image * f.image;
}

// What a softmax's logits are multiplied by, after they have lost their maximum: a logit of 500 that was multiplied and
// rounded before would have no room for the digits that its exponential shows. Never 0, for there is a maximum of -inf.
template <class A>
FGD_DEVICE A logit_scale(const PyramidParams& p, const Level& level, int softmax) {
  const bool attention = softmax == kTeacher || softmax == kStudent;
  return attention ? static_cast<A>(fmax(1 / (level.channels * p.spatial_temperature), 0x1p-126)) : A{1};
}

template <class A>
FGD_DEVICE A* image_maps(const Level& level, int image) {
  return static_cast<A*>(level.maps) + int64_t{image} * kMaps * level.pixels;
}
template <class A>
FGD_DEVICE A* image_stats(const Level& level, int image) {
  return static_cast<A*>(level.stats) + int64_t{image} * kStats * level.channels;
}
template <class A>
FGD_DEVICE A* chunk_sums(const Level& level, int image, int chunk) {
  return static_cast<A*>(level.chunk_sums) + (int64_t{image} * level.chunks + chunk) * chunk_stride(level.channels);
}

}  // namespace fgd::cuda

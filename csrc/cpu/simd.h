// Vectors of float or double, as wide as the instruction set this file is compiled for, and what the kernels do with
// them. Written with the vector extensions of GCC and Clang; intrinsics only where those have no word for it.
//
// This header and all that uses it is compiled once per instruction set, each time in a namespace of its own
// (FGD_ISA): no function compiled for AVX-512 may be merged by the linker with its AVX2 twin.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define FGD_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FGD_VECTOR_BYTES 32
#else
#define FGD_VECTOR_BYTES 16
#endif

namespace fgd::cpu {

// Storage types of features.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace FGD_ISA {

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(FGD_VECTOR_BYTES)));
  typedef int32_t bits __attribute__((vector_size(FGD_VECTOR_BYTES)));
  static constexpr int32_t sign = INT32_MIN;
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(FGD_VECTOR_BYTES)));
  typedef int64_t bits __attribute__((vector_size(FGD_VECTOR_BYTES)));
  static constexpr int64_t sign = INT64_MIN;
};

template <class A>
using Vec = typename VectorOf<A>::type;
template <class A>
using Bits = typename VectorOf<A>::bits;
template <class A>
constexpr int kWidth = FGD_VECTOR_BYTES / sizeof(A);

template <class A>
inline Vec<A> broadcast(A x) {
  return x - Vec<A>{};
}

// a·b + c, rounded once where the instruction set has such an instruction, else twice. The kernels are compiled with
// -ffp-contract=off: no other product is fused with a sum, so the bits of a result do not depend on the compiler.
template <class A>
inline Vec<A> multiply_add(Vec<A> a, Vec<A> b, Vec<A> c) {
  return a * b + c;
}
#if defined(__AVX512F__)
template <>
inline Vec<float> multiply_add<float>(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
template <>
inline Vec<double> multiply_add<double>(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__AVX2__)
template <>
inline Vec<float> multiply_add<float>(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
template <>
inline Vec<double> multiply_add<double>(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif defined(__aarch64__)
template <>
inline Vec<float> multiply_add<float>(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
template <>
inline Vec<double> multiply_add<double>(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#endif

template <class A>
inline Vec<A> absolute(Vec<A> x) {
  return (Vec<A>)((Bits<A>)x & ~VectorOf<A>::sign);
}

// sign(x)·w, with sign(0) = 0.
template <class A>
inline Vec<A> sign_times(Vec<A> x, Vec<A> w) {
  const Bits<A> flipped = (Bits<A>)w ^ ((Bits<A>)x & VectorOf<A>::sign);
  return (Vec<A>)(flipped & (Bits<A>)(x != 0));
}

template <class A>
inline Vec<A> select(Bits<A> mask, Vec<A> yes, Vec<A> no) {
  return (Vec<A>)((mask & (Bits<A>)yes) | (~mask & (Bits<A>)no));
}

// The larger lane; a NaN in x loses, so that a running maximum stays comparable (the NaN comes out of exp instead).
template <class A>
inline Vec<A> larger(Vec<A> x, Vec<A> best) {
  return select<A>((Bits<A>)(x > best), x, best);
}

// ---- loads and stores: features of any storage type become vectors of A --------------------------------------------

typedef uint16_t Narrow __attribute__((vector_size(FGD_VECTOR_BYTES / 2)));
typedef uint32_t Wide __attribute__((vector_size(FGD_VECTOR_BYTES)));

template <class T, class To>
struct Converter;  // as many elements of T in memory as a vector of To has lanes <-> that vector

template <class A>
struct Converter<A, A> {
  static Vec<A> load(const A* p) {
    Vec<A> v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(A* p, Vec<A> v) { memcpy(p, &v, sizeof v); }
};

template <>
struct Converter<float, double> {
  typedef float Few __attribute__((vector_size(FGD_VECTOR_BYTES / 2)));
  static Vec<double> load(const float* p) {
    Few few;
    memcpy(&few, p, sizeof few);
    return __builtin_convertvector(few, Vec<double>);
  }
  static void store(float* p, Vec<double> v) {
    const Few few = __builtin_convertvector(v, Few);
    memcpy(p, &few, sizeof few);
  }
};

template <>
struct Converter<BFloat16, float> {
  static Vec<float> load(const BFloat16* p) {
#if defined(__AVX512F__)
    const Wide wide = (Wide)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    const Wide wide = (Wide)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    Narrow n;
    memcpy(&n, p, sizeof n);
    const Wide wide = __builtin_convertvector(n, Wide);
#endif
    return (Vec<float>)(wide << 16);
  }
  // Round to nearest, ties to even; a NaN stays one.
  static void store(BFloat16* p, Vec<float> v) {
    const Wide u = (Wide)v;
    const Wide rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const Wide nan = (u >> 16) | 0x40;
    const Wide is_nan = (Wide)(v != v);
    const Narrow n = __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), Narrow);
    memcpy(p, &n, sizeof n);
  }
};

inline float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else {
    // Scaling by 2^112 maps half exponents, subnormals included, onto float exponents exactly.
    float value;
    const uint32_t shifted = magnitude << 13;
    memcpy(&value, &shifted, 4);
    value *= 5.192296858534828e33f;
    memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

inline uint16_t float_to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to infinity
  if (magnitude < 0x38800000u) {                        // subnormal half: let the float adder round
    float value;
    memcpy(&value, &magnitude, 4);
    value += 0.5f;
    uint32_t rounded;
    memcpy(&rounded, &value, 4);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return static_cast<uint16_t>(sign | ((magnitude + 0xfff + odd - 0x38000000u) >> 13));
}

template <>
struct Converter<Half, float> {
  static Vec<float> load(const Half* p) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
    return (Vec<float>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
#else
    Vec<float> v;
    for (int i = 0; i < kWidth<float>; ++i) v[i] = half_to_float(p[i].bits);
    return v;
#endif
  }
  static void store(Half* p, Vec<float> v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, 0));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, 0));
#elif defined(__aarch64__)
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
    for (int i = 0; i < kWidth<float>; ++i) p[i].bits = float_to_half(v[i]);
#endif
  }
};

template <class A, class T>
inline Vec<A> load(const T* p) {
  return Converter<T, A>::load(p);
}

template <class A, class T>
inline void store(T* p, Vec<A> v) {
  Converter<T, A>::store(p, v);
}

template <class A>
inline void add_to(A* p, Vec<A> v) {
  store<A>(p, load<A>(static_cast<const A*>(p)) + v);
}

// The first n < width elements, the other lanes 0.
template <class A, class T>
inline Vec<A> load_first(const T* p, int n) {
  alignas(FGD_VECTOR_BYTES) T buffer[kWidth<A>] = {};
  memcpy(buffer, p, n * sizeof(T));
  return load<A>(static_cast<const T*>(buffer));
}

template <class A, class T>
inline void store_first(T* p, Vec<A> v, int n) {
  alignas(FGD_VECTOR_BYTES) T buffer[kWidth<A>];
  store<A>(static_cast<T*>(buffer), v);
  memcpy(p, buffer, n * sizeof(T));
}

// A store that goes round the caches, for rows that nobody reads soon; p must be aligned to the vector.
template <class A, class T>
inline void stream(T* p, Vec<A> v) {
  store<A>(p, v);
}
#if defined(__AVX512F__)
template <>
inline void stream<float, float>(float* p, Vec<float> v) {
  _mm512_stream_ps(p, (__m512)v);
}
#elif defined(__AVX2__)
template <>
inline void stream<float, float>(float* p, Vec<float> v) {
  _mm256_stream_ps(p, (__m256)v);
}
#endif

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

// ---- sums across lanes ---------------------------------------------------------------------------------------------

template <class A>
inline A sum_lanes(Vec<A> v) {
  A lanes[kWidth<A>];
  memcpy(lanes, &v, sizeof v);
  for (int step = kWidth<A> / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}

template <class A>
inline A largest_lane(Vec<A> v) {
  A best = v[0];
  for (int i = 1; i < kWidth<A>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// Sums of the lanes of eight vectors at once: a halving exchange costs less than eight sums one by one.
template <class A>
inline void sum_lanes_of_8(const Vec<A>* v, A* out) {
  for (int k = 0; k < 8; ++k) out[k] = sum_lanes<A>(v[k]);
}
#if defined(__AVX512F__) || defined(__AVX2__)
template <>
inline void sum_lanes_of_8<float>(const Vec<float>* v, float* out) {
  __m256 h[8];
  for (int k = 0; k < 8; ++k) {
#if defined(__AVX512F__)
    const __m512 x = (__m512)v[k];
    h[k] = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    h[k] = (__m256)v[k];
#endif
  }
  __m256 q[2];
  for (int k = 0; k < 2; ++k) {
    const __m256 a = _mm256_hadd_ps(h[4 * k], h[4 * k + 1]), b = _mm256_hadd_ps(h[4 * k + 2], h[4 * k + 3]);
    q[k] = _mm256_hadd_ps(a, b);
  }
  const __m256 low = _mm256_permute2f128_ps(q[0], q[1], 0x20), high = _mm256_permute2f128_ps(q[0], q[1], 0x31);
  _mm256_storeu_ps(out, _mm256_add_ps(low, high));
}
#endif

// ---- exponential ---------------------------------------------------------------------------------------------------

// exp(x) for x <= 0 (any x works; large ones give inf): 2^n·p(r) with n = round(x / ln 2), |r| <= ln 2 / 2, and the
// Taylor-like polynomial of Cephes. Relative error below 2e-7; below the smallest normal number with the digits that
// are left.
inline Vec<float> exponential(Vec<float> x) {
  const Vec<float> low = broadcast(-104.f), high = broadcast(88.7228f);
  const Bits<float> underflow = x<low, overflow = x> high;
  const Vec<float> clamped = select<float>(underflow, low, select<float>(overflow, high, x));
  const Vec<float> magic = broadcast(12582912.f);  // 1.5·2^23: a sum with it is rounded to an integer
  const Vec<float> shifted = multiply_add<float>(clamped, broadcast(1.44269504088896341f), magic);
  const Vec<float> n = shifted - magic;
  Vec<float> r = multiply_add<float>(n, broadcast(-0.693359375f), clamped);
  r = multiply_add<float>(n, broadcast(2.12194440e-4f), r);
  Vec<float> p = broadcast(1.9875691500e-4f);
  p = multiply_add<float>(p, r, broadcast(1.3981999507e-3f));
  p = multiply_add<float>(p, r, broadcast(8.3334519073e-3f));
  p = multiply_add<float>(p, r, broadcast(4.1665795894e-2f));
  p = multiply_add<float>(p, r, broadcast(1.6666665459e-1f));
  p = multiply_add<float>(p, r, broadcast(5.0000001201e-1f));
  p = multiply_add<float>(p * r, r, r) + 1.f;
  // Half of 2^n before, half after: n goes from -150 to 128.
  const Bits<float> half = ((Bits<float>)shifted - 0x4b400000) >> 1, rest = ((Bits<float>)shifted - 0x4b400000) - half;
  const Vec<float> scale_a = (Vec<float>)((half + 127) << 23), scale_b = (Vec<float>)((rest + 127) << 23);
  const Vec<float> value = p * scale_a * scale_b;
  const Vec<float> infinite = select<float>(overflow, broadcast(__builtin_inff()), value);
  return (Vec<float>)((Bits<float>)infinite & ~underflow);
}

// The same to some 1e-16: Taylor's polynomial.
inline Vec<double> exponential(Vec<double> x) {
  const Vec<double> low = broadcast(-746.), high = broadcast(709.);
  const Bits<double> underflow = x<low, overflow = x> high;
  const Vec<double> clamped = select<double>(underflow, low, select<double>(overflow, high, x));
  const Vec<double> magic = broadcast(6755399441055744.);  // 1.5·2^52
  const Vec<double> shifted = multiply_add<double>(clamped, broadcast(1.4426950408889634), magic);
  const Vec<double> n = shifted - magic;
  Vec<double> r = multiply_add<double>(n, broadcast(-6.93147180369123816490e-01), clamped);
  r = multiply_add<double>(n, broadcast(-1.90821492927058770002e-10), r);
  constexpr double kOver[] = {6227020800., 479001600., 39916800., 3628800., 362880., 40320.,
                              5040.,       720.,       120.,      24.,      6.};
  Vec<double> p = broadcast(1 / kOver[0]);
  for (int i = 1; i < 11; ++i) p = multiply_add<double>(p, r, broadcast(1 / kOver[i]));
  p = multiply_add<double>(p, r, broadcast(.5));
  p = multiply_add<double>(p * r, r, r) + 1.;
  const Bits<double> whole = (Bits<double>)shifted - 0x4338000000000000, half = whole >> 1;
  const Vec<double> scale_a = (Vec<double>)((half + 1023) << 52), scale_b = (Vec<double>)((whole - half + 1023) << 52);
  const Vec<double> infinite = select<double>(overflow, broadcast(__builtin_inf()), p * scale_a * scale_b);
  return (Vec<double>)((Bits<double>)infinite & ~underflow);
}

template <class A>
inline A exponential_of(A x) {
  return static_cast<A>(__builtin_exp(static_cast<double>(x)));
}

}  // namespace FGD_ISA
}  // namespace fgd::cpu

// What random programs (fuzz.py) call: on the device an instruction of PTX, on the host the same in plain C++.
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__CUDACC__)
#define FN static __device__ __forceinline__
FN uint32_t clz32(uint32_t x) { return __clz(x); }
FN uint32_t clz64(uint64_t x) { return __clzll(x); }
FN uint32_t popc32(uint32_t x) { return __popc(x); }
FN uint32_t popc64(uint64_t x) { return __popcll(x); }
FN uint32_t ffs32(uint32_t x) { return __ffs(x); }
FN uint32_t brev32(uint32_t x) { return __brev(x); }
FN uint64_t brev64(uint64_t x) { return __brevll(x); }
FN uint32_t perm(uint32_t x, uint32_t y, uint32_t s) { return __byte_perm(x, y, s); }
FN uint32_t funnel_l(uint32_t l, uint32_t h, uint32_t s) { return __funnelshift_l(l, h, s); }
FN uint32_t funnel_r(uint32_t l, uint32_t h, uint32_t s) { return __funnelshift_rc(l, h, s); }
FN uint32_t hi32(uint32_t x, uint32_t y) { return __umulhi(x, y); }
FN int32_t hi32s(int32_t x, int32_t y) { return __mulhi(x, y); }
FN uint64_t hi64(uint64_t x, uint64_t y) { return __umul64hi(x, y); }
FN int64_t hi64s(int64_t x, int64_t y) { return __mul64hi(x, y); }
FN uint32_t sad32(int32_t x, int32_t y, uint32_t z) { return __sad(x, y, z); }
FN float fma32(float x, float y, float z) { return __fmaf_rn(x, y, z); }
FN float mul_ru(float x, float y) { return __fmul_ru(x, y); }
FN float sqrt32(float x) { return __fsqrt_rn(x); }
FN double sqrt64(double x) { return __dsqrt_rn(x); }
FN float less(float x, float y) { return fminf(x, y); }
FN float more(float x, float y) { return fmaxf(x, y); }
FN double less(double x, double y) { return fmin(x, y); }
FN double more(double x, double y) { return fmax(x, y); }
FN int32_t to_i32(float x) { return __float2int_rz(x); }
FN int32_t round_i32(float x) { return __float2int_rn(x); }
FN uint32_t to_u32(float x) { return __float2uint_rd(x); }
FN int64_t to_i64(float x) { return __float2ll_rz(x); }
FN uint64_t to_u64(float x) { return __float2ull_rz(x); }
FN int32_t to_i32(double x) { return __double2int_rz(x); }
FN int32_t round_i32(double x) { return __double2int_rn(x); }
FN uint32_t to_u32(double x) { return __double2uint_rd(x); }
FN int64_t to_i64(double x) { return __double2ll_rz(x); }
FN uint64_t to_u64(double x) { return __double2ull_rz(x); }
#else
#define FN static inline
FN uint32_t clz32(uint32_t x) { return x ? __builtin_clz(x) : 32; }
FN uint32_t clz64(uint64_t x) { return x ? __builtin_clzll(x) : 64; }
FN uint32_t popc32(uint32_t x) { return __builtin_popcount(x); }
FN uint32_t popc64(uint64_t x) { return __builtin_popcountll(x); }
FN uint32_t ffs32(uint32_t x) { return __builtin_ffs(x); }
FN uint64_t brev64(uint64_t x) {
  uint64_t r = 0;
  for (int i = 0; i < 64; ++i) r |= (x >> i & 1) << (63 - i);
  return r;
}
FN uint32_t brev32(uint32_t x) { return brev64(x) >> 32; }
FN uint32_t perm(uint32_t x, uint32_t y, uint32_t s) {
  const uint64_t both = uint64_t{y} << 32 | x;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) r |= uint32_t(both >> (s >> 4 * i & 7) * 8 & 255) << 8 * i;
  return r;
}
FN uint32_t funnel_l(uint32_t l, uint32_t h, uint32_t s) { return ((uint64_t{h} << 32 | l) << (s & 31)) >> 32; }
FN uint32_t funnel_r(uint32_t l, uint32_t h, uint32_t s) { return (uint64_t{h} << 32 | l) >> (s < 32 ? s : 32); }
FN uint32_t hi32(uint32_t x, uint32_t y) { return uint64_t{x} * y >> 32; }
FN int32_t hi32s(int32_t x, int32_t y) { return int64_t{x} * y >> 32; }
FN uint64_t hi64(uint64_t x, uint64_t y) { return static_cast<unsigned __int128>(x) * y >> 64; }
FN int64_t hi64s(int64_t x, int64_t y) { return static_cast<__int128>(x) * y >> 64; }
FN uint32_t sad32(int32_t x, int32_t y, uint32_t z) {
  int64_t d = int64_t{x} - y;
  return uint32_t(d < 0 ? -d : d) + z;
}
FN float fma32(float x, float y, float z) { return fmaf(x, y, z); }
template <class F>
FN float directed(double exact, F keep) {
  float r = static_cast<float>(exact);
  if (std::isfinite(exact) && !keep(r)) r = nextafterf(r, r > exact ? -INFINITY : INFINITY);
  return r;
}
FN float mul_ru(float x, float y) {
  const double exact = double(x) * y;
  return directed(exact, [&](float r) { return r >= exact; });
}
FN float sqrt32(float x) { return sqrtf(x); }
FN double sqrt64(double x) { return sqrt(x); }
template <class T>
FN T less(T x, T y) {
  return x != x ? y : y != y ? x : x == y ? (std::signbit(x) ? x : y) : x < y ? x : y;
}
template <class T>
FN T more(T x, T y) {
  return x != x ? y : y != y ? x : x == y ? (std::signbit(x) ? y : x) : x > y ? x : y;
}
// A NaN becomes 0 where neither side has 64 bits, and the most negative number elsewhere.
template <class I, class F>
FN I saturate(F x) {
  constexpr int bits = 8 * sizeof(I);
  const I lowest = I(-1) < I(0) ? I(uint64_t{1} << (bits - 1)) : I(0), highest = I(~lowest);
  if (x != x) return sizeof(F) == 4 && bits < 64 ? I(0) : I(uint64_t{1} << (bits - 1));
  const F end = std::ldexp(F(1), I(-1) < I(0) ? bits - 1 : bits);
  return x >= end ? highest : x < F(lowest) ? lowest : I(x);
}
template <class F>
FN int32_t to_i32(F x) {
  return saturate<int32_t>(std::trunc(x));
}
template <class F>
FN int32_t round_i32(F x) {
  return saturate<int32_t>(std::nearbyint(x));
}
template <class F>
FN uint32_t to_u32(F x) {
  return saturate<uint32_t>(std::floor(x));
}
template <class F>
FN int64_t to_i64(F x) {
  return saturate<int64_t>(std::trunc(x));
}
template <class F>
FN uint64_t to_u64(F x) {
  return saturate<uint64_t>(std::trunc(x));
}
#endif
FN uint64_t bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return x != x ? 0x7fffffffu : b;
}
FN uint64_t bits(double x) {
  uint64_t b;
  memcpy(&b, &x, 8);
  return x != x ? ~0ull >> 1 : b;
}
template <class T>
FN uint64_t bits(T x) {
  return static_cast<uint64_t>(x);
}

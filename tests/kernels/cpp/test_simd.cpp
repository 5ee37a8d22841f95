// csrc/cpu/simd.h, compiled once per instruction set: conversions, partial loads and stores, sums, the exponential.
#include <cmath>  // before simd.h, which declares exp by itself
#include <limits>
#include <memory>

#include "check.h"
#include "narrow.h"
#include "simd.h"

namespace fgd::cpu::FGD_ISA {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int W = kWidth<float>;

template <class T>
narrow::Format format_of();
template <>
narrow::Format format_of<Half>() {
  return narrow::kHalf;
}
template <>
narrow::Format format_of<BFloat16>() {
  return narrow::kBFloat16;
}

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Every bit pattern: to float as the format says, and back to itself.
template <class T>
void test_every_pattern() {
  const narrow::Format format = format_of<T>();
  for (int first = 0; first < 65536; first += W) {
    T in[W], out[W];
    for (int i = 0; i < W; ++i) in[i].bits = static_cast<uint16_t>(first + i);
    const Vec<float> v = load<float>(static_cast<const T*>(in));
    store<float>(static_cast<T*>(out), v);
    for (int i = 0; i < W; ++i) {
      const double want = narrow::value(format, in[i].bits);
      if (std::isnan(want)) {
        CHECK(std::isnan(v[i]), "%04x became %g", in[i].bits, static_cast<double>(v[i]));
        CHECK(std::isnan(narrow::value(format, out[i].bits)), "NaN %04x became %04x", in[i].bits, out[i].bits);
        CHECK((in[i].bits ^ out[i].bits) >> 15 == 0, "NaN %04x lost its sign: %04x", in[i].bits, out[i].bits);
      } else {
        CHECK(check::same_bits(v[i], static_cast<float>(want)), "%04x: got %g, not %g", in[i].bits,
              static_cast<double>(v[i]), want);
        CHECK(in[i].bits == out[i].bits, "%04x came back as %04x", in[i].bits, out[i].bits);
      }
    }
  }
}

template <class T>
void expect_rounded(const float* x) {
  Vec<float> v;
  std::memcpy(&v, x, sizeof v);
  T out[W];
  store<float>(static_cast<T*>(out), v);
  for (int i = 0; i < W; ++i) {
    const uint16_t want = narrow::round(format_of<T>(), static_cast<double>(x[i]));
    const bool nan = std::isnan(x[i]) && std::isnan(narrow::value(format_of<T>(), out[i].bits));
    CHECK(nan || out[i].bits == want, "%.9g: got %04x, not %04x", static_cast<double>(x[i]), out[i].bits, want);
  }
}

// Around every number of the format: the number, halfway to the next one (a tie), and the floats beside these.
template <class T>
void test_rounding_at_edges() {
  const narrow::Format format = format_of<T>();
  const int infinite = format.special() << format.fraction_bits;
  for (int bits = 0; bits < infinite; ++bits) {
    const double low = narrow::value(format, static_cast<uint16_t>(bits));
    // Past the largest number as if there were one more exponent: where rounding to infinity begins.
    const double high = bits + 1 < infinite ? narrow::value(format, static_cast<uint16_t>(bits + 1))
                                            : 2 * low - narrow::value(format, static_cast<uint16_t>(bits - 1));
    const float at = static_cast<float>(low), tie = static_cast<float>(low + (high - low) / 2);
    float x[16] = {at, std::nextafter(at, kInf), std::nextafter(tie, 0.f), tie, std::nextafter(tie, kInf)};
    for (int i = 5; i < 10; ++i) x[i] = -x[i - 5];
    for (int i = 0; i < 16; i += W) expect_rounded<T>(x + i);
  }
}

template <class T>
void test_rounding() {
  const float edges[16] = {0.f, -0.f, kInf,    -kInf,    kNaN,     -kNaN,     65504.f, 65519.996f,
                           1e9, -1e9, 3.4e38f, -3.4e38f, 1.4e-45f, -1.4e-45f, 5.9e-8f, 2.98e-8f};
  for (int i = 0; i < 16; i += W) expect_rounded<T>(edges + i);
  check::Random random(2);
  for (int i = 0; i < 20000; ++i) {
    float x[W];  // any pattern at all, then magnitudes that float16 can hold
    for (float& value : x) value = from_bits(static_cast<uint32_t>(random.bits()));
    expect_rounded<T>(x);
    for (float& value : x) value = static_cast<float>(std::ldexp(random.uniform(-1, 1), int(random.uniform(-28, 18))));
    expect_rounded<T>(x);
  }
}

// The first n elements of buffers that end right there: the sanitizer sees a byte too many.
template <class A, class T>
void test_partial() {
  constexpr int width = kWidth<A>;
  for (int n = 1; n < width; ++n) {
    const std::unique_ptr<T[]> from(new T[n]), to(new T[n]);
    A full[width];
    for (int i = 0; i < width; ++i) full[i] = static_cast<A>(i + 1);
    T whole[width];
    Vec<A> v;
    std::memcpy(&v, full, sizeof v);
    store<A>(static_cast<T*>(whole), v);
    std::memcpy(static_cast<void*>(from.get()), whole, n * sizeof(T));
    const Vec<A> first = load_first<A>(static_cast<const T*>(from.get()), n);
    for (int i = 0; i < width; ++i)
      CHECK(first[i] == (i < n ? full[i] : 0), "lane %d of %d loaded: %g", i, n, static_cast<double>(first[i]));
    store_first<A>(to.get(), v, n);
    CHECK(std::memcmp(to.get(), whole, n * sizeof(T)) == 0, "%d elements stored", n);
    // What lies behind the n elements stays.
    T kept[width];
    std::memset(static_cast<void*>(kept), 0x5a, sizeof kept);
    store_first<A>(static_cast<T*>(kept), v, n);
    const unsigned char* byte = reinterpret_cast<const unsigned char*>(kept);
    for (size_t i = n * sizeof(T); i < sizeof kept; ++i) CHECK(byte[i] == 0x5a, "byte %zu written, n = %d", i, n);
  }
}

// Whole numbers, so that every order of adding gives the same sum.
template <class A>
void test_sums() {
  check::Random random(3);
  for (int round = 0; round < 200; ++round) {
    Vec<A> v[8];
    double want[8] = {};
    for (int k = 0; k < 8; ++k)
      for (int i = 0; i < kWidth<A>; ++i) {
        v[k][i] = std::floor(static_cast<A>(random.uniform(-1000, 1000)));
        want[k] += v[k][i];
      }
    A got[8];
    sum_lanes_of_8<A>(v, got);
    for (int k = 0; k < 8; ++k) {
      CHECK(got[k] == want[k], "sum_lanes_of_8[%d]: %g, not %g", k, static_cast<double>(got[k]), want[k]);
      CHECK(sum_lanes<A>(v[k]) == want[k], "sum_lanes, not %g", want[k]);
      double largest = v[k][0];
      for (int i = 1; i < kWidth<A>; ++i) largest = std::fmax(largest, v[k][i]);
      CHECK(largest_lane<A>(v[k]) == largest, "largest_lane, not %g", largest);
    }
  }
}

template <class A>
void test_elementwise() {
  const A nan = std::numeric_limits<A>::quiet_NaN();
  const A x[] = {2, -2, 0, -A{0}, nan}, absolute_x[] = {2, 2, 0, 0, nan}, signed_3[] = {3, -3, 0, 0, 3};
  for (int i = 0; i < 5; ++i) {
    const A a = absolute<A>(broadcast(x[i]))[0], s = sign_times<A>(broadcast(x[i]), broadcast(A{3}))[0];
    CHECK(check::same_bits(a, absolute_x[i]) || (a != a && x[i] != x[i]), "absolute(%g)", static_cast<double>(x[i]));
    CHECK(s == signed_3[i] || x[i] != x[i], "sign_times(%g, 3): %g", static_cast<double>(x[i]), static_cast<double>(s));
  }
  CHECK(larger<A>(broadcast(A{2}), broadcast(A{1}))[0] == 2, "larger takes the first");
  CHECK(larger<A>(broadcast(A{1}), broadcast(A{2}))[0] == 2, "larger takes the second");
  CHECK(larger<A>(broadcast(nan), broadcast(A{1}))[0] == 1, "larger drops a NaN");
}

void test_exponential() {
  double worst = 0;
  const int steps = 400000;
  for (int first = 0; first < steps; first += W) {
    Vec<float> x;
    for (int i = 0; i < W; ++i) x[i] = static_cast<float>(-103 + 191. * (first + i) / steps);
    const Vec<float> got = exponential(x);
    for (int i = 0; i < W; ++i) {
      const double want = std::exp(static_cast<double>(x[i]));
      if (want < static_cast<double>(std::numeric_limits<float>::min()))
        CHECK(std::fabs(got[i] - want) < std::numeric_limits<float>::denorm_min(), "exp(%g) = %g",
              static_cast<double>(x[i]), static_cast<double>(got[i]));
      else
        worst = std::fmax(worst, std::fabs(got[i] - want) / want);
    }
  }
  CHECK(worst < 3e-7, "relative error %.3g", worst);
  const float x[] = {0.f, -0.f, -kInf, kInf, 89.f, -105.f, -1e30f, 1e30f},
              want[] = {1.f, 1.f, 0.f, kInf, kInf, 0.f, 0.f, kInf};
  for (int i = 0; i < 8; ++i) {
    const float got = exponential(Vec<float>{} + x[i])[0];
    CHECK(check::same_bits(got, want[i]), "exp(%g) = %g", static_cast<double>(x[i]), static_cast<double>(got));
  }
  CHECK(std::isnan(exponential(Vec<float>{} + kNaN)[0]), "exp(NaN) is a number");
  const Vec<double> wide = exponential(Vec<double>{} - 1.5);
  for (int i = 0; i < kWidth<double>; ++i) CHECK(wide[i] == std::exp(-1.5), "exp in double: %.17g", wide[i]);
}

}  // namespace
}  // namespace fgd::cpu::FGD_ISA

int run_simd_tests() {
  using namespace fgd::cpu::FGD_ISA;
  test_every_pattern<fgd::cpu::Half>();
  test_every_pattern<fgd::cpu::BFloat16>();
  test_rounding_at_edges<fgd::cpu::Half>();
  test_rounding_at_edges<fgd::cpu::BFloat16>();
  test_rounding<fgd::cpu::Half>();
  test_rounding<fgd::cpu::BFloat16>();
  test_partial<float, float>();
  test_partial<double, double>();
  test_partial<float, fgd::cpu::Half>();
  test_partial<float, fgd::cpu::BFloat16>();
  test_sums<float>();
  test_sums<double>();
  test_elementwise<float>();
  test_elementwise<double>();
  test_exponential();
  return check::result("simd " FGD_ISA_NAME);
}

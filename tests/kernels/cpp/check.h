// Checks of the C++ tests: a failed one prints where and what, and the test goes on; main returns `check::result()`.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

// CHECK(condition, format, arguments...): the message says what the condition cannot.
#define CHECK(condition, ...) \
  ((condition) ? check::passed() : check::failed(__FILE__, __LINE__, #condition, check::message(__VA_ARGS__)))

namespace check {

inline int& failures() {
  static int count = 0;
  return count;
}

inline int64_t& checks() {
  static int64_t count = 0;
  return count;
}

struct Message {
  char text[256];
};

template <class... Arguments>
Message message(const char* format, Arguments... arguments) {
  Message out;
  if constexpr (sizeof...(arguments) == 0)
    std::snprintf(out.text, sizeof out.text, "%s", format);
  else
    std::snprintf(out.text, sizeof out.text, format, arguments...);
  return out;
}

inline void passed() { ++checks(); }

inline void failed(const char* file, int line, const char* condition, const Message& message) {
  ++checks();
  if (++failures() <= 20) std::fprintf(stderr, "%s:%d: %s: %s\n", file, line, condition, message.text);
}

// What main returns. A test that checked nothing has failed.
inline int result(const char* name) {
  std::printf("%s: %lld checks, %d failed\n", name, static_cast<long long>(checks()), failures());
  return failures() > 0 || checks() == 0;
}

// Bits, so that NaN equals itself and 0 does not equal -0.
template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// The same numbers on every machine, which the distributions of <random> do not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform(double low, double high) { return low + (high - low) * (bits() >> 11) * 0x1p-53; }
  // Mean 0, variance 1, and bounded: the sum of six uniform numbers.
  double normal() {
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += uniform(-1, 1);
    return sum * 0.70710678118654752;
  }

 private:
  uint64_t state_;
};

}  // namespace check

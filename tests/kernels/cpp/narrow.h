// float16 and bfloat16 by their definition, in double: slow, and independent of csrc/cpu/simd.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace narrow {

struct Format {
  int exponent_bits, fraction_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int special() const { return (1 << exponent_bits) - 1; }
};
constexpr Format kHalf{5, 10}, kBFloat16{8, 7};

inline double value(Format f, uint16_t bits) {
  const int fraction = bits & ((1 << f.fraction_bits) - 1), exponent = (bits >> f.fraction_bits) & f.special();
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == f.special()) return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - f.bias() - f.fraction_bits);
  return sign * std::ldexp(fraction + (1 << f.fraction_bits), exponent - f.bias() - f.fraction_bits);
}

// Round to nearest, ties to even (the mode in which std::nearbyint runs). A NaN gives the one without payload.
inline uint16_t round(Format f, double x) {
  const int sign = std::signbit(x) ? 1 << 15 : 0, infinite = f.special() << f.fraction_bits;
  if (std::isnan(x)) return static_cast<uint16_t>(sign | infinite | 1 << (f.fraction_bits - 1));
  if (x == 0) return static_cast<uint16_t>(sign);
  const double size = std::fabs(x);
  if (std::isinf(size)) return static_cast<uint16_t>(sign | infinite);
  const int exponent = std::max(std::ilogb(size), 1 - f.bias());
  // In units of the last place; a carry into the next exponent, or from the subnormals, comes out right by itself.
  const double units = std::nearbyint(std::ldexp(size, f.fraction_bits - exponent));
  const double bits = units + std::ldexp(exponent + f.bias() - 1, f.fraction_bits);
  return static_cast<uint16_t>(sign | (bits >= infinite ? infinite : static_cast<int>(bits)));
}

}  // namespace narrow

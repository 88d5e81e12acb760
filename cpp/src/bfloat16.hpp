// bfloat16 bit patterns to and from float32, round to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace llava_fa {

// NaN stays NaN.
inline std::uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<std::uint16_t>(value != value ? 0x7fc0u : rounded >> 16);
}

inline float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace llava_fa

// Polar constellations for circular complex Gaussian entries (design section 3).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "llava_fa/types.hpp"

namespace llava_fa {

// uniform: the paper's PolarQuant, uniform magnitude over [0, row maximum] times uniform phase.
// product: Lloyd-Max magnitude for a Rayleigh law times uniform phase.
// ring:    unrestricted polar quantization (Wilson 1980): every ring has its own number of phases.
// trellis: codes along a column depend on each other (trellis.hpp); it has no constellation.
enum class Codec { uniform = 0, product = 1, ring = 2, trellis = 3 };

std::string_view codec_name(Codec codec);
Codec codec_from_name(std::string_view name);  // Error(invalid_argument) on unknown names

inline constexpr int kMinCodeBits = 1;
inline constexpr int kMaxCodeBits = 10;

// `phases` points at radius · exp(2 pi i (p + phase_offset) / phases), p = 0 .. phases-1. Points
// are counted ring by ring: these are number `first_point` and those that follow.
struct Ring {
  float radius = 0;
  int phases = 1;
  float phase_offset = 0;
  int first_point = 0;
};

// 2^code_bits points in total, which equal parts of a turn map onto each other: with `turns` of
// them, part i of every ring has the codes from i · 2^code_bits / turns on, ring by ring. Points
// are relative to the row scale: the root mean square of the row for `ring` and `product`, its
// largest magnitude for `uniform`.
struct Constellation {
  Codec codec = Codec::ring;
  int code_bits = 0;
  int turns = 1;
  std::vector<Ring> rings;                // increasing radius
  std::vector<std::uint16_t> point_code;  // 2^code_bits: codes of the points, ring by ring
  std::vector<float> point_real;          // 2^code_bits, by code, as all that follow
  std::vector<float> point_imag;          // 2^code_bits
  std::vector<float> point_pairs;         // the same, real and imaginary parts in turn
  double design_distortion = 0.0;         // predicted mean squared error on a unit-power Gaussian
};

// Designed once per (codec, bits) and cached; thread-safe. Equations in docs/method.md.
// Throws Error(invalid_argument) unless kMinCodeBits <= code_bits <= kMaxCodeBits.
const Constellation& constellation(Codec codec, int code_bits);

}  // namespace llava_fa

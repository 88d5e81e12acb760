// Codes of eight bits of 16 rings with 16 phases, odd rings turned by half a phase: a sign (bit 7),
// a ring (bits 6 to 3) and a phase (bits 2 to 0). The point is ± radius[ring] · exp(πiu / 16),
// where u = 2 · phase + ring mod 2, so that bits 3 to 0 tell u.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <array>
#include <cmath>
#include <numbers>

#include "product_tables.hpp"

namespace llava_fa::cpu {

inline constexpr Index kRings = 16, kPhases = 16;

inline bool has_ring_codes(const Constellation& points) {
  if (points.rings.size() != kRings) return false;
  for (Index ring = 0; ring < kRings; ++ring) {
    const float offset = ring % 2 == 0 ? 0.0f : 0.5f;
    const Ring& one = points.rings[ring];
    if (one.phases != kPhases || one.phase_offset != offset) return false;
  }
  return true;
}

inline std::array<float, kRings> ring_radii(const Constellation& points) {
  std::array<float, kRings> radii;
  for (Index ring = 0; ring < kRings; ++ring) radii[ring] = points.rings[ring].radius;
  return radii;
}

// exp(pi i u / 16) by the bits that tell u.
inline ProductTable unit_points() {
  ProductTable table;
  for (Index bits = 0; bits < kTableSize; ++bits) {
    const Index u = 2 * (bits % 8) + bits / 8;
    const double angle = std::numbers::pi * static_cast<double>(u) / kPhases;
    table.real[bits] = static_cast<float>(std::cos(angle));
    table.imag[bits] = static_cast<float>(std::sin(angle));
  }
  return table;
}

struct RingCodes {
  Register ring;
  Register angle;     // the bits that tell u
  Register negative;  // all ones where so
};

[[gnu::always_inline]] inline RingCodes split_codes(Register bytes) {
  const Register low_nibble = all8(15);
  return {shift_right16(bytes, 3) & low_nibble, bytes & low_nibble, negative8(bytes)};
}

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

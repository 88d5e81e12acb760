// What the points of the trellis are made of, by code bits. Normative: docs/format.md.
#pragma once

#include <array>
#include <cstdint>

#include "llava_fa/trellis.hpp"

namespace llava_fa {

struct TrellisTables {
  // The index of a state is the exclusive or of column[b] over its set bits b. From the low end:
  // the coarse nibbles of the real and the imaginary part, then the fine ones.
  std::array<std::uint16_t, kMaxStateBits> column;
  std::array<std::int8_t, 16> coarse;  // antisymmetric: coarse[15 - i] = -coarse[i]
  std::array<std::int8_t, 16> fine;    // zero if the coarse levels are all
  int fine_shift;
};

// Of 1 <= code_bits <= kMaxTrellisCodeBits.
const TrellisTables& trellis_tables(int code_bits);

}  // namespace llava_fa

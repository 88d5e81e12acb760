// Maps of bytes that are linear over GF(2), in registers: the exclusive or of one table entry for
// each half of a byte.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <cstdint>

#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

inline constexpr Index kTableSize = 16;

struct Halves {
  Register low, high;
};
[[gnu::always_inline]] inline Halves halves_of(Register bytes) {
  return {low_halves(bytes), high_halves(bytes)};
}

class HalfTables {
 public:
  using Bytes = std::uint8_t[2][kTableSize];  // of low and of high halves

  explicit HalfTables(const Bytes& bytes)
      : low_(load_table(bytes[0])), high_(load_table(bytes[1])) {}

  [[gnu::always_inline]] Register look_up(Halves halves) const {
    return table_entries(low_, halves.low) ^ table_entries(high_, halves.high);
  }

 private:
  Register low_, high_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

// Blocks of decoded points in the order in which they are multiplied with many activations.
//
// Columns l and n - l of a complex row, 0 < l < n/2, with points a and b, meet the entry u + iv of
// a half spectrum and its conjugate (see matmul.cpp):
//   Re y += Re(a + b) u' + Im(a - b) v',  Im y += Im(a + b) u' + Re(b - a) v',
// where u' and v' are u and v over sqrt2. Such a pair is a slot; the last one has the columns that
// are their own mirror images, l = 0 and, if n is even, l = n/2, with real entries u' and v':
//   Re y += Re a u' + Re b v',  Im y += Im a u' + Im b v'.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include "llava_fa/polar_codec.hpp"
#include "llava_fa/trellis.hpp"

namespace llava_fa::cpu {

inline constexpr Index kBlockSlots = 64;

inline Index slot_count(Index n) { return column_pairs(n) + 1; }

// Points of a register of rows and one column.
struct RowPoints {
  Floats real[4], imag[4];
};

// Multipliers of Re y and of Im y in 64 rows: those of u' and of v' of slot after slot.
struct alignas(64) Block {
  Block() {}  // leaves the numbers as they are
  float real[2 * kBlockSlots][kPanelRows];
  float imag[2 * kBlockSlots][kPanelRows];

  // The rows from `row` on of a slot's two columns.
  [[gnu::always_inline]] void store_pair(Index slot, Index row, const RowPoints& a,
                                         const RowPoints& b) {
    for (Index part = 0; part < 4; ++part, row += kFloats) {
      store_floats(real[2 * slot] + row, a.real[part] + b.real[part]);
      store_floats(real[2 * slot + 1] + row, a.imag[part] + -b.imag[part]);
      store_floats(imag[2 * slot] + row, a.imag[part] + b.imag[part]);
      store_floats(imag[2 * slot + 1] + row, b.real[part] + -a.real[part]);
    }
  }
  void store_own_images(Index slot, Index row, const RowPoints& a, const RowPoints& b) {
    for (Index part = 0; part < 4; ++part, row += kFloats) {
      store_floats(real[2 * slot] + row, a.real[part]);
      store_floats(real[2 * slot + 1] + row, b.real[part]);
      store_floats(imag[2 * slot] + row, a.imag[part]);
      store_floats(imag[2 * slot + 1] + row, b.imag[part]);
    }
  }
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

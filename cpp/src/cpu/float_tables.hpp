// Look-ups of float32 in registers, byte by byte.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include "half_tables.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {

// Which row each lane of the values of a register of rows holds: rows {0-3, 16-19, ...},
// {4-7, 20-23, ...}, {8-11, ...} and {12-15, ...}.
inline constexpr RowOrder kFloatOrder = order_by_sixteen([](Index part) { return 4 * part; }, 1);

// Sixteen values in each of kTables tables, in planes of bytes.
template <Index kTables>
class FloatTables {
 public:
  void fill(Index table, const Floats (&values)[kSixteen]) {
    Register bits[kSixteen];
    for (Index part = 0; part < kSixteen; ++part) bits[part] = as_bytes(values[part]);
    split_bytes<4>(bits, planes_[table][0]);
  }

  // All values, in the order of tables.
  void fill(const float* values) {
    for (Index table = 0; table < kTables; ++table) {
      Floats loaded[kSixteen];
      for (Index part = 0; part < kSixteen; ++part) {
        loaded[part] = load_floats(values + kTableSize * table + kFloats * part);
      }
      fill(table, loaded);
    }
  }

  // values[part] of kFloatOrder, with the signs changed that are set in the bytes of `signs`.
  // Tables whose index has its top bit set add nothing.
  [[gnu::always_inline]] void look_up(const Register (&index)[kTables], Register signs,
                                      Floats (&values)[4]) const {
    const auto plane = [&](int b) __attribute__((always_inline)) {
      Register bytes = table_entries(load_table(planes_[0][b]), index[0]);
      for (Index table = 1; table < kTables; ++table) {
        bytes = bytes | table_entries(load_table(planes_[table][b]), index[table]);
      }
      return bytes;
    };
    const Register bytes[4] = {plane(0), plane(1), plane(2), plane(3) ^ signs};
    const Register low[2] = {interleave_low8(bytes[0], bytes[1]),
                             interleave_high8(bytes[0], bytes[1])};
    const Register high[2] = {interleave_low8(bytes[2], bytes[3]),
                              interleave_high8(bytes[2], bytes[3])};
    for (int half = 0; half < 2; ++half) {
      values[2 * half] = as_floats(interleave_low16(low[half], high[half]));
      values[2 * half + 1] = as_floats(interleave_high16(low[half], high[half]));
    }
  }

 private:
  alignas(16) std::uint8_t planes_[kTables][4][kTableSize];
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

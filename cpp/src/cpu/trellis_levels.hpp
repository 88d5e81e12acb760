// Levels of a trellis code: what the two parts of its points are integer multiples of, from
// look-ups of indices (trellis_indexes.hpp) in tables of sixteen bytes.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "product_tables.hpp"
#include "trellis_indexes.hpp"

namespace llava_fa::cpu {

// Rows after add_words of words that hold the even rows and the odd ones.
inline constexpr RowOrder kEvenOddOrder =
    order_by_sixteen([](Index part) { return 2 * (part % 2) + part / 2; }, 4);

enum Part { kReal, kImag };

// a + b and a - b of one part of two columns' levels a and b, as words in halves of the rows.
struct PairWords {
  Register sum[2], difference[2];
};

// One part of the levels of a register of rows as bytes: in one, or the coarse and the fine ones.
template <Fine kFine>
struct LevelBytes {
  Register levels[kFine == Fine::word ? 2 : 1];
};

// Levels as words as large as sums of two may be: bytes as their upper half, or weighted sums.
template <Fine kFine>
class Levels {
 public:
  using Bytes = LevelBytes<kFine>;

  explicit Levels(const Trellis& code) {
    alignas(16) std::uint8_t coarse[kTableSize], fine[2][kTableSize];  // signed
    int most_coarse = 0, most_fine = 0;
    for (Index i = 0; i < kTableSize; ++i) {
      coarse[i] = static_cast<std::uint8_t>(code.coarse[i]);
      const auto index =
          kFine == Fine::previous
              ? code.index_of_codes(static_cast<std::uint32_t>(i << code.code_bits)).fine
              : static_cast<std::uint8_t>(0x11 * i);
      fine[0][i] = static_cast<std::uint8_t>(code.fine[index & 15]);
      fine[1][i] = static_cast<std::uint8_t>(code.fine[index >> 4]);
      most_coarse = std::max(most_coarse, std::abs(code.coarse[i]));
      most_fine = std::max(most_fine, std::abs(code.fine[i]));
    }
    coarse_ = load_table(coarse);
    for (int part = 0; part < 2; ++part) fine_[part] = load_table(fine[part]);
    const int shift = code.fine_shift;
    const int most = (most_coarse << shift) + most_fine;
    int weight = 256;  // of the last bit
    if constexpr (kFine == Fine::word) {
      weight = std::min(255 >> shift, kMostWord / (2 * most));
      weights_ = all16(weight << 8 | weight << shift);
    }
    largest_ = static_cast<float>(weight * most);
    unit_ = std::ldexp(1.0f, -(kLevelBits + shift)) / static_cast<float>(weight);
  }

  // Which rows the lanes hold after add_words.
  static constexpr const RowOrder& kOrder = kFine == Fine::word ? kWordOrder : kEvenOddOrder;

  float largest() const { return largest_; }  // of one column's words
  float unit() const { return unit_; }        // value of a word's last bit

  // One part.
  [[gnu::always_inline]] Bytes look_up(Part part, LevelIndexes index) const {
    const auto half_entries = [part](Register table, Register bytes) {
      return part == kReal ? low_half_entries(table, bytes) : high_half_entries(table, bytes);
    };
    const Register coarse = half_entries(coarse_, index.coarse);
    if constexpr (kFine == Fine::none) {
      return {coarse};
    } else {
      const Register fine = kFine == Fine::previous ? code_entries(fine_[part], index.fine)
                                                    : half_entries(fine_[part], index.fine);
      if constexpr (kFine == Fine::word) {
        return {coarse, fine};
      } else {
        return {add8(coarse, fine)};
      }
    }
  }

  // Bytes that are whole levels have room for sums of two.
  [[gnu::always_inline]] PairWords combine(const Bytes& a, const Bytes& b) const {
    PairWords pair;
    if constexpr (kFine == Fine::word) {
      Register left[2], right[2];
      widen(a, left);
      widen(b, right);
      for (int half = 0; half < 2; ++half) {
        pair.sum[half] = add16(left[half], right[half]);
        pair.difference[half] = sub16(left[half], right[half]);
      }
    } else {
      widen({add8(a.levels[0], b.levels[0])}, pair.sum);
      widen({sub8(a.levels[0], b.levels[0])}, pair.difference);
    }
    return pair;
  }

  [[gnu::always_inline]] void widen(const Bytes& bytes, Register (&words)[2]) const {
    if constexpr (kFine == Fine::word) {
      const auto [coarse, fine] = bytes.levels;
      words[0] = pair_sums8(weights_, interleave_low8(coarse, fine));
      words[1] = pair_sums8(weights_, interleave_high8(coarse, fine));
    } else {
      const Register upper = all16(0xff00);
      words[0] = shift_left16(bytes.levels[0], 8);
      words[1] = bytes.levels[0] & upper;
    }
  }

 private:
  static constexpr int kMostWord = 32767;

  // Only matrices leave more than the code in a byte.
  [[gnu::always_inline]] static Register code_entries(Register table, Register codes) {
#if defined(LLAVA_FA_HAS_BIT_MATRICES)
    return low_half_entries(table, codes);
#else
    return table_entries(table, codes);
#endif
  }

  Register coarse_, fine_[2];  // of both parts
  Register weights_;           // of coarse and fine bytes in turn, for Fine::word
  float largest_;
  float unit_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

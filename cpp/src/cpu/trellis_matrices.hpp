// Indices of trellis states by products of bytes with matrices over GF(2): codes are multiplied
// where they lie in a byte, so that nothing is unpacked. trellis_indexes.hpp says what a class of
// indices has.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_BIT_MATRICES)

#include <array>
#include <cstdint>
#include <cstring>
#include <numeric>

#include "code_tiles.hpp"
#include "trellis_indexes.hpp"

namespace llava_fa::cpu {

// Codes of kBits bits, of which a state holds up to kCodes.
template <Index kBits, Index kCodes>
class MatrixIndexes {
 public:
  static constexpr Index kReach = 16;
  static constexpr Index kGroup = 8 / std::gcd(8, kBits);  // columns of whole bytes
  static_assert(kReach >= kCodes - 1);

 private:
  static constexpr Index kGroupBytes = kGroup * kBits / 8;
  static constexpr Fine kFine = fine_kind(kBits);

  // What a byte adds to the indices of a state.
  struct Matrices {
    std::uint64_t coarse = 0, fine = 0;
  };
  // Of the one or two bytes that hold the code `back` rows above: [column][back][byte].
  using GroupMatrices = std::array<std::array<Matrices[2], kCodes>, kGroup>;

 public:
  explicit MatrixIndexes(const Trellis& code) {
    for (Index column = 0; column < kGroup; ++column) {
      for (Index back = 0; back < kCodes; ++back) {
        for (Index bit = 0; bit < kBits; ++bit) set_columns(code, column, back, bit);
      }
    }
  }

  using Rows = ByteRows<kTrellisTileColumns * kBits / 8>;

  void unpack(const std::uint8_t* codes, Index count, Index first, Rows& rows) const {
    copy_rows(codes, count, first, rows);
  }

  void copy_above(Index end, Rows& rows) const { rows.template copy_above<kReach>(end); }

  class Tile {
   public:
    Tile(const MatrixIndexes& indexes, const Rows& rows, Index row)
        : matrices_(&indexes.matrices_), rows_(rows.at(0, row)) {}

    [[gnu::always_inline]] LevelIndexes at(Index first, Index offset) const {
      const Index bit = offset * kBits % 8, bytes = bit + kBits > 8 ? 2 : 1;
      const std::uint8_t* codes =
          rows_ + (first / kGroup * kGroupBytes + offset * kBits / 8) * Rows::kColumnBytes;
      const auto& matrices = (*matrices_)[static_cast<std::size_t>(offset % kGroup)];
      LevelIndexes index = {all8(0), all8(0)};
#pragma GCC unroll 16
      for (Index back = 0; back < kCodes; ++back) {
        add(codes - back, matrices[back][0], index);
        if (bytes == 2) add(codes + Rows::kColumnBytes - back, matrices[back][1], index);
      }
      if constexpr (kFine == Fine::previous) {
        const Register above = load_bytes(codes - 1);
        index.fine = bit == 0 ? above : shift_right16(above, 4);
      }
      return index;
    }

   private:
    [[gnu::always_inline]] static void add(const std::uint8_t* codes, const Matrices& matrices,
                                           LevelIndexes& index) {
      const Register bytes = load_bytes(codes);
      index.coarse = index.coarse ^ times_bit_matrix(bytes, matrices.coarse);
      if constexpr (kFine == Fine::byte || kFine == Fine::word) {
        index.fine = index.fine ^ times_bit_matrix(bytes, matrices.fine);
      }
    }

    const GroupMatrices* matrices_;
    const std::uint8_t* rows_;  // first byte
  };

 private:
  // What a bit of a code adds.
  void set_columns(const Trellis& code, Index column, Index back, Index bit) {
    const auto [coarse, fine] = code.index_of_codes(1u << (back * kBits + bit));
    const Index in_group = column * kBits + bit;
    Matrices& matrices = matrices_[column][back][in_group / 8 - column * kBits / 8];
    matrices.coarse |= bit_matrix_column(coarse, in_group % 8);
    matrices.fine |= bit_matrix_column(fine, in_group % 8);
  }

  GroupMatrices matrices_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_BIT_MATRICES

// Indices of trellis states, from which their levels follow: of a register of rows and one column
// at a time.
//
// An index is linear over GF(2) in the codes that the state holds: the exclusive or of one table
// entry per half byte of them. Codes lie as one byte per row, after those of the rows above, so
// that what earlier rows add is the same bytes read a little earlier.
//
// Both classes of indices have
//   Rows                             what a thread keeps of a tile's rows
//   kReach                           how many rows above a state may reach
//   unpack(codes, begin, end, rows)  prepares these rows of a panel, from a multiple of
//                                    kVectorRows on
//   leave(codes, end, rows)          makes the last of them those above the next panel
//   Tile(indexes, codes, rows, row)  the indices of a register of rows, at(column)
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <cstdint>
#include <cstring>
#include <vector>

#include "code_tiles.hpp"
#include "half_tables.hpp"
#include "llava_fa/trellis.hpp"

namespace llava_fa::cpu {

inline constexpr Index kTrellisTileColumns = 32;
inline constexpr Index kTilePairs = kTrellisTileColumns / 2;  // of columns that are mirror images

// How levels are put together: of the coarse part alone; with a fine one that the code one row
// above tells, or which has an index of its own, added as bytes; or with the coarse part some bits
// above the fine one.
enum class Fine { none, previous, byte, word };

inline Fine fine_kind(const Trellis& code) {
  if (!code.has_fine) return Fine::none;
  if (code.fine_shift > 0) return Fine::word;
  if (code.code_bits > 4) return Fine::byte;
  // Indices are linear: single bits tell where they come from.
  for (int bit = 0; bit < code.state_bits; ++bit) {
    const bool previous = bit / code.code_bits == 1;
    if (!previous && code.index_of(1u << bit).fine != 0) return Fine::byte;
  }
  return Fine::previous;
}

// The low half of each byte is the real part's; but of Fine::previous, `fine` is that code.
struct LevelIndexes {
  Register coarse, fine;
};

// What one half byte of the code `back` rows above adds to a state's index.
struct Tap {
  Index back;
  int plane;
  alignas(16) std::uint8_t coarse[kTableSize];
  alignas(16) std::uint8_t fine[kTableSize];
};

inline std::vector<Tap> taps_of(const Trellis& code) {
  std::vector<Tap> taps;
  for (Index back = 0; back * code.code_bits < code.state_bits; ++back) {
    for (int plane = 0; 4 * plane < code.code_bits; ++plane) {
      const Index shift = back * code.code_bits + 4 * plane;
      if (shift >= code.state_bits) continue;
      Tap tap = {back, plane, {}, {}};
      for (std::uint32_t half = 0; half < kTableSize; ++half) {
        const std::uint32_t in_code = (half << (4 * plane)) & ((1u << code.code_bits) - 1);
        const auto [coarse, fine] = code.index_of_codes(in_code << (back * code.code_bits));
        tap.coarse[half] = coarse;
        tap.fine[half] = fine;
      }
      taps.push_back(tap);
    }
  }
  return taps;
}

// Rows of a panel after those above it, as lower and upper halves of codes: [plane][column][row].
struct HalfRows {
  static constexpr Index kAbove = kVectorRows;  // keeps rows aligned; the last are those above
  static constexpr Index kColumnBytes = kAbove + kPanelRows;

  alignas(64) std::uint8_t halves[2][kTrellisTileColumns][kColumnBytes];

  std::uint8_t* at(int plane, Index column, Index row) {
    return halves[plane][column] + kAbove + row;
  }
  const std::uint8_t* at(int plane, Index column, Index row) const {
    return halves[plane][column] + kAbove + row;
  }
};

// Puts the codes of a register of rows, of kBits bits, to rows from `row` on.
template <int kBits>
void unpack_halves(const std::uint8_t* tile, Index row, HalfRows& rows) {
  constexpr Index kGroup = 8;  // codes, in kBits bytes
  for (Index c = 0; c < kTrellisTileColumns; c += kGroup) {
    Register bytes[kBits];
    for (Index b = 0; b < kBits; ++b) {
      const std::uint8_t* column = tile + (c / kGroup * kBits + b) * kPanelRows + row;
      prefetch_codes(column);
      bytes[b] = load_bytes(column);
    }
#pragma GCC unroll 8
    for (Index i = 0; i < kGroup; ++i) {
      const Register codes = bit_field<kBits>(bytes, i);
      if constexpr (kBits <= 4) {
        store_bytes(rows.at(0, c + i, row), codes);
      } else {
        store_bytes(rows.at(0, c + i, row), low_halves(codes));
        store_bytes(rows.at(1, c + i, row), high_halves(codes));
      }
    }
  }
}

using UnpackHalves = void (*)(const std::uint8_t*, Index, HalfRows&);
inline constexpr UnpackHalves kUnpackHalves[] = {
    unpack_halves<1>, unpack_halves<2>, unpack_halves<3>, unpack_halves<4>,
    unpack_halves<5>, unpack_halves<6>, unpack_halves<7>};

// Indices of codes of up to seven bits: planes of half bytes, and a tap for each of a state.
template <std::size_t kTaps, Fine kFine>  // kTaps 0: any number
class TapIndexes {
 public:
  static constexpr Index kReach = 16;
  static_assert(kReach >= kMaxStateBits);

  using Rows = HalfRows;
  static_assert(kReach <= Rows::kAbove);

  explicit TapIndexes(const Trellis& code)
      : planes_(code.code_bits > 4 ? 2 : 1),
        unpack_(kUnpackHalves[code.code_bits - 1]),
        taps_(taps_of(code)) {}

  void unpack(const std::uint8_t* codes, Index begin, Index end, Rows& rows) const {
    for (Index row = begin; row < end; row += kVectorRows) unpack_(codes, row, rows);
  }

  void leave(const std::uint8_t* /*codes*/, Index end, Rows& rows) const {
    for (int plane = 0; plane < planes_; ++plane) {
#pragma GCC unroll 8
      for (Index c = 0; c < kTrellisTileColumns; ++c) {
        std::memmove(rows.at(plane, c, -kReach), rows.at(plane, c, end - kReach), kReach);
      }
    }
  }

  class Tile {
   public:
    Tile(const TapIndexes& indexes, const std::uint8_t* /*codes*/, const Rows& rows, Index row)
        : count_(indexes.taps_.size()) {
      for (std::size_t i = 0; i < count(); ++i) {
        const Tap& tap = indexes.taps_[i];
        taps_[i] = {rows.at(tap.plane, 0, row - tap.back), load_table(tap.coarse),
                    load_table(tap.fine)};
      }
    }

    [[gnu::always_inline]] LevelIndexes at(Index column) const {
      LevelIndexes index = {all8(0), all8(0)};
      for (std::size_t i = 0; i < count(); ++i) {
        const Register halves = load_bytes(taps_[i].halves + column * Rows::kColumnBytes);
        index.coarse = index.coarse ^ table_entries(taps_[i].coarse, halves);
        if constexpr (kFine == Fine::previous) {
          if (i == 1) index.fine = halves;
        } else if constexpr (kFine != Fine::none) {
          index.fine = index.fine ^ table_entries(taps_[i].fine, halves);
        }
      }
      return index;
    }

   private:
    std::size_t count() const { return kTaps == 0 ? count_ : kTaps; }

    // Where the first column's half bytes are, and what they add.
    struct LoadedTap {
      const std::uint8_t* halves;
      Register coarse, fine;
    };

    std::size_t count_;
    LoadedTap taps_[kTaps == 0 ? kMaxStateBits : kTaps];
  };

 private:
  int planes_;
  UnpackHalves unpack_;
  std::vector<Tap> taps_;
};

// Indices of codes of eight bits, of which a state holds two: the newest, which is its own part of
// the coarse index, and the older one. The newest code's part of the fine index follows from the
// coarse index c of the whole state, which is looked up anyhow: with p what the older code adds to
// c, it is fine(c) ^ fine(p), and fine(p) goes into the older code's table.
class ByteIndexes {
 public:
  static constexpr Index kReach = 1;

  // The row above a panel and its first register of rows; all others lie behind each other in the
  // tile.
  struct Rows {
    static constexpr Index kAbove = kVectorRows;  // keeps rows aligned; the last is there
    static constexpr Index kColumnBytes = kAbove + kVectorRows;

    alignas(64) std::uint8_t codes[kTrellisTileColumns][kColumnBytes];

    std::uint8_t* at(Index column, Index row) { return codes[column] + kAbove + row; }
    const std::uint8_t* at(Index column, Index row) const { return codes[column] + kAbove + row; }
  };

  explicit ByteIndexes(const Trellis& code) {
    for (std::uint32_t half = 0; half < kTableSize; ++half) {
      for (int place = 0; place < 2; ++place) {
        const std::uint32_t value = half << (4 * place);
        const auto [coarse, fine] = code.index_of_codes(value << 8);
        newest_fine_[place][half] = code.index_of_codes(value).fine;
        older_coarse_[place][half] = coarse;
        older_fine_[place][half] = fine ^ code.index_of_codes(coarse).fine;
      }
    }
  }

  void unpack(const std::uint8_t* codes, Index begin, Index /*end*/, Rows& rows) const {
    if (begin > 0) return;
#pragma GCC unroll 4
    for (Index c = 0; c < kTrellisTileColumns; ++c) {
      prefetch_codes<kTrellisTileColumns * kPanelRows>(codes + c * kPanelRows);
      store_bytes(rows.at(c, 0), load_bytes(codes + c * kPanelRows));
    }
  }

  void leave(const std::uint8_t* codes, Index end, Rows& rows) const {
#pragma GCC unroll 8
    for (Index c = 0; c < kTrellisTileColumns; ++c) {
      *rows.at(c, -1) = codes[c * kPanelRows + end - 1];
    }
  }

  class Tile {
   public:
    Tile(const ByteIndexes& indexes, const std::uint8_t* codes, const Rows& rows, Index row)
        : newest_(codes + row),
          older_(row == 0 ? rows.at(0, -1) : codes + row - 1),
          newest_fine_(indexes.newest_fine_),
          older_coarse_(indexes.older_coarse_),
          older_fine_(indexes.older_fine_) {
      // Columns lie as far apart as in the tile, or a panel has no rows but its first register's.
      static_assert(Rows::kColumnBytes == kPanelRows || kVectorRows == kPanelRows);
    }

    [[gnu::always_inline]] LevelIndexes at(Index column) const {
      const Halves older = halves_of(load_bytes(older_ + column * Rows::kColumnBytes));
      const Register coarse =
          load_bytes(newest_ + column * kPanelRows) ^ older_coarse_.look_up(older);
      const Register fine = newest_fine_.look_up(halves_of(coarse));
      return {coarse, fine ^ older_fine_.look_up(older)};
    }

   private:
    const std::uint8_t* newest_;
    const std::uint8_t* older_;
    HalfTables newest_fine_, older_coarse_, older_fine_;
  };

 private:
  HalfTables::Bytes newest_fine_, older_coarse_, older_fine_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

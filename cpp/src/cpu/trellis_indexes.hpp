// Indices of trellis states, from which their levels follow: of a register of rows and one column
// at a time.
//
// An index is linear over GF(2) in the codes that the state holds: the exclusive or of one table
// entry per half byte of them. Codes lie as one byte per row, after those of the rows above, so
// that what earlier rows add is the same bytes read a little earlier.
//
// All classes of indices (that of trellis_matrices.hpp too) have
//   Rows                               what a thread keeps of a tile's rows
//   kReach                             how many rows above a state may reach
//   kGroup                             columns that at() treats in as many ways
//   unpack(codes, count, first, rows)  puts `count` rows of a panel to rows from `first` on
//   copy_above(end, rows)              makes the last rows before `end` those above row 0
//   Tile(indexes, rows, row)           the indices of a register of rows; those of column
//                                      first + offset are at(first, offset), with a multiple of
//                                      kGroup and a constant below it, or below two
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "code_tiles.hpp"
#include "half_tables.hpp"
#include "llava_fa/trellis.hpp"

namespace llava_fa::cpu {

inline constexpr Index kTrellisTileColumns = 32;
inline constexpr Index kTilePairs = kTrellisTileColumns / 2;  // of columns that are mirror images
// A few panels are read side by side, and what was asked for takes room in the cache for each.
inline constexpr Index kTrellisPrefetchBytes = 2048;

// How levels are put together: of the coarse part alone; with a fine one that the code one row
// above tells, or which has an index of its own, added as bytes; or with the coarse part some bits
// above the fine one.
enum class Fine { none, previous, byte, word };

// That of the codes in docs/format.md.
constexpr Fine fine_kind(Index code_bits) {
  if (code_bits <= 3) return Fine::none;
  if (code_bits == 4) return Fine::previous;
  return code_bits == 5 ? Fine::byte : Fine::word;
}

// body(first, offset) for first = 0, kCount, ... below `end` and the constants offset = 0, ...,
// kCount - 1.
template <Index kCount, class Body>
[[gnu::always_inline]] inline void for_groups(Index end, Body body) {
  for (Index first = 0; first < end; first += kCount) {
    [&]<Index... kOffsets>(std::integer_sequence<Index, kOffsets...>)
        __attribute__((always_inline)) {
          (body(first, kOffsets), ...);
        }(std::make_integer_sequence<Index, kCount>());
  }
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

// Bytes of a segment's rows after those above them: [column][row].
template <Index kColumns>
class ByteRows {
 public:
  static constexpr Index kAbove = kVectorRows;  // keeps rows aligned; the last are those above
  static constexpr Index kColumnBytes = kAbove + kSegmentRows;

  ByteRows() {}  // leaves the bytes as they are

  std::uint8_t* at(Index column, Index row) { return bytes_[column] + kAbove + row; }
  const std::uint8_t* at(Index column, Index row) const { return bytes_[column] + kAbove + row; }

  // `count` rows before `end` become those above row 0.
  template <Index kCount>
  void copy_above(Index end) {
#pragma GCC unroll 4
    for (Index c = 0; c < kColumns; ++c) std::memmove(at(c, -kCount), at(c, end - kCount), kCount);
  }

 private:
  alignas(64) std::uint8_t bytes_[kColumns][kColumnBytes];
};

// Lower and upper halves of codes.
using HalfRows = ByteRows<kTrellisTileColumns>[2];

// Puts the codes of a register of rows, of kBits bits, to rows from `first` on.
template <int kBits>
void unpack_halves(const std::uint8_t* codes, Index first, HalfRows& rows) {
  constexpr Index kGroup = 8;  // codes, in kBits bytes
  for (Index c = 0; c < kTrellisTileColumns; c += kGroup) {
    Register bytes[kBits];
    for (Index b = 0; b < kBits; ++b) {
      const std::uint8_t* column = codes + (c / kGroup * kBits + b) * kPanelRows;
      prefetch_codes<kTrellisPrefetchBytes>(column);
      bytes[b] = load_bytes(column);
    }
#pragma GCC unroll 8
    for (Index i = 0; i < kGroup; ++i) {
      const Register codes = bit_field<kBits>(bytes, i);
      if constexpr (kBits <= 4) {
        store_bytes(rows[0].at(c + i, first), codes);
      } else {
        store_bytes(rows[0].at(c + i, first), low_halves(codes));
        store_bytes(rows[1].at(c + i, first), high_halves(codes));
      }
    }
  }
}

using UnpackHalves = void (*)(const std::uint8_t*, Index, HalfRows&);
inline constexpr UnpackHalves kUnpackHalves[] = {
    unpack_halves<1>, unpack_halves<2>, unpack_halves<3>, unpack_halves<4>,
    unpack_halves<5>, unpack_halves<6>, unpack_halves<7>};

// Copies `count` rows of a panel to rows from `first` on.
template <Index kColumns>
void copy_rows(const std::uint8_t* codes, Index count, Index first, ByteRows<kColumns>& rows) {
  for (Index row = 0; row < count; row += kVectorRows) {
#pragma GCC unroll 4
    for (Index c = 0; c < kColumns; ++c) {
      const std::uint8_t* place = codes + c * kPanelRows + row;
      prefetch_codes<kTrellisPrefetchBytes>(place);
      store_bytes(rows.at(c, first + row), load_bytes(place));
    }
  }
}

// Indices of codes of up to seven bits: planes of half bytes, and a tap for each of a state.
template <std::size_t kTaps, Fine kFine>  // kTaps 0: any number
class TapIndexes {
 public:
  static constexpr Index kReach = 16;
  static constexpr Index kGroup = 1;
  static_assert(kReach >= kMaxStateBits);

  using Rows = HalfRows;

  explicit TapIndexes(const Trellis& code)
      : planes_(code.code_bits > 4 ? 2 : 1),
        unpack_(kUnpackHalves[code.code_bits - 1]),
        taps_(taps_of(code)) {}

  void unpack(const std::uint8_t* codes, Index count, Index first, Rows& rows) const {
    for (Index row = 0; row < count; row += kVectorRows) unpack_(codes + row, first + row, rows);
  }

  void copy_above(Index end, Rows& rows) const {
    for (int plane = 0; plane < planes_; ++plane) rows[plane].template copy_above<kReach>(end);
  }

  class Tile {
   public:
    Tile(const TapIndexes& indexes, const Rows& rows, Index row) : count_(indexes.taps_.size()) {
      for (std::size_t i = 0; i < count(); ++i) {
        const Tap& tap = indexes.taps_[i];
        taps_[i] = {rows[tap.plane].at(0, row - tap.back), load_table(tap.coarse),
                    load_table(tap.fine)};
      }
    }

    [[gnu::always_inline]] LevelIndexes at(Index first, Index offset) const {
      const Index place = (first + offset) * ByteRows<kTrellisTileColumns>::kColumnBytes;
      LevelIndexes index = {all8(0), all8(0)};
      for (std::size_t i = 0; i < count(); ++i) {
        const Register halves = load_bytes(taps_[i].halves + place);
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
  static constexpr Index kGroup = 1;

  using Rows = ByteRows<kTrellisTileColumns>;

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

  void unpack(const std::uint8_t* codes, Index count, Index first, Rows& rows) const {
    copy_rows<kTrellisTileColumns>(codes, count, first, rows);
  }

  void copy_above(Index end, Rows& rows) const { rows.copy_above<kReach>(end); }

  class Tile {
   public:
    Tile(const ByteIndexes& indexes, const Rows& rows, Index row)
        : codes_(rows.at(0, row)),
          newest_fine_(indexes.newest_fine_),
          older_coarse_(indexes.older_coarse_),
          older_fine_(indexes.older_fine_) {}

    [[gnu::always_inline]] LevelIndexes at(Index first, Index offset) const {
      const std::uint8_t* codes = codes_ + (first + offset) * Rows::kColumnBytes;
      const Halves older = halves_of(load_bytes(codes - 1));
      const Register coarse = load_bytes(codes) ^ older_coarse_.look_up(older);
      const Register fine = newest_fine_.look_up(halves_of(coarse));
      return {coarse, fine ^ older_fine_.look_up(older)};
    }

   private:
    const std::uint8_t* codes_;  // newest ones of the first column
    HalfTables newest_fine_, older_coarse_, older_fine_;
  };

 private:
  HalfTables::Bytes newest_fine_, older_coarse_, older_fine_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

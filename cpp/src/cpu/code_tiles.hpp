// Tiles of packed codes: some bytes of the 64 rows of a panel, to be read in vectors without asking
// where the matrix ends.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../code_panels.hpp"
#include "backend.hpp"

namespace llava_fa::cpu {

inline constexpr Index kMostTileBytes = 128;

// Byte b of row r of a tile is at [b * kPanelRows + r].
class CodeTiles {
 public:
  // Holds a tile that is not whole; one per thread, filled before it is read.
  struct alignas(64) Scratch {
    Scratch() {}  // leaves the bytes as they are
    std::uint8_t bytes[kMostTileBytes * kPanelRows];
  };

  CodeTiles(const CodedMatrix& matrix, Index tile_bytes)
      : packed_(matrix.packed),
        rows_(matrix.rows),
        row_bytes_(packed_row_bytes(matrix.cols, matrix.code_bits())),
        tile_bytes_(tile_bytes) {}

  Index count() const { return (row_bytes_ + tile_bytes_ - 1) / tile_bytes_; }

  // Tile t of the panel that starts at first_row. Rows and bytes beyond the matrix are zeros.
  const std::uint8_t* tile(Index first_row, Index t, Scratch& scratch) const {
    const Index panel_rows = std::min(kPanelRows, rows_ - first_row);
    const Index first_byte = t * tile_bytes_;
    const std::uint8_t* source = packed_ + first_row * row_bytes_ + first_byte * panel_rows;
    const Index present = std::min(tile_bytes_, row_bytes_ - first_byte);
    if (panel_rows == kPanelRows && present == tile_bytes_) return source;
    std::memset(scratch.bytes, 0, static_cast<std::size_t>(tile_bytes_ * kPanelRows));
    for (Index b = 0; b < present; ++b) {
      std::memcpy(scratch.bytes + b * kPanelRows, source + b * panel_rows,
                  static_cast<std::size_t>(panel_rows));
    }
    return scratch.bytes;
  }

 private:
  const std::uint8_t* packed_;
  Index rows_;
  Index row_bytes_;
  Index tile_bytes_;
};

// Bits [kBits i, kBits (i + 1)) of the streams of rows whose bytes are bytes[0], bytes[1], ...
template <int kBits, class Bytes>
[[gnu::always_inline]] inline Register bit_field(const Bytes& bytes, Index i) {
  constexpr int kMask = (1 << kBits) - 1;
  const Index byte = i * kBits / 8;
  const int shift = static_cast<int>(i * kBits % 8), low_bits = 8 - shift;
  const int low_mask = (1 << low_bits) - 1;
  const auto masked = [](Register value, int mask) { return value & all8(mask); };
  const Register low = masked(shift_right16(bytes[byte], shift), kMask & low_mask);
  if (kBits <= low_bits) return low;
  return low | masked(shift_left16(bytes[byte + 1], low_bits), kMask & ~low_mask);
}

// Asks for the line of codes that is read some bytes later: far enough for memory to answer, near
// enough that the line is still in the innermost cache.
template <Index ahead = 3072>
void prefetch_codes(const std::uint8_t* bytes) {
  __builtin_prefetch(bytes + ahead);
}

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

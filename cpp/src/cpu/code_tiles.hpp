// Tiles of packed codes: some bytes of the 64 rows of a panel, to be read in vectors without asking
// where the matrix ends.
#pragma once

#if defined(__AVX2__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../code_panels.hpp"
#include "backend.hpp"

namespace llava_fa::cpu {

inline constexpr Index kMostTileBytes = 128;
inline constexpr Index kVectorRows = 32;  // bytes of a register

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

inline __m256i load_bytes(const std::uint8_t* bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

// Bits [kBits i, kBits (i + 1)) of the streams of 32 rows whose bytes are given.
template <int kBits>
__m256i bit_field(const __m256i* bytes, Index i) {
  constexpr int kMask = (1 << kBits) - 1;
  const Index byte = i * kBits / 8;
  const int shift = static_cast<int>(i * kBits % 8), low_bits = 8 - shift;
  const int low_mask = (1 << low_bits) - 1;
  const auto masked = [](__m256i value, int mask) {
    return _mm256_and_si256(value, _mm256_set1_epi8(static_cast<char>(mask)));
  };
  const __m256i low = masked(_mm256_srli_epi16(bytes[byte], shift), kMask & low_mask);
  if (kBits <= low_bits) return low;
  return _mm256_or_si256(low,
                         masked(_mm256_slli_epi16(bytes[byte + 1], low_bits), kMask & ~low_mask));
}

// Asks for the line of codes that is read `ahead` bytes later.
template <Index ahead = 4096>
void prefetch_codes(const std::uint8_t* bytes) {
  _mm_prefetch(reinterpret_cast<const char*>(bytes + ahead), _MM_HINT_T0);
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

// Order of packed codes (docs/format.md, "Codes"): rows lie in panels of 64, the last of which may
// have fewer, and within a panel the same byte of consecutive rows is consecutive. A vector
// instruction then treats the same column of many rows, and a panel is read from end to end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "llava_fa/polar_codec.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

// Where the bytes of one row lie: byte b is at offset + b * stride.
struct RowPlace {
  Index offset;
  Index stride;
};

constexpr RowPlace row_place(Index rows, Index row_bytes, Index row) {
  const Index first = row / kPanelRows * kPanelRows;
  const Index left = rows - first;
  return {first * row_bytes + row - first, left < kPanelRows ? left : kPanelRows};
}

// Puts the bytes of one row to their places.
inline void write_row(const std::uint8_t* row_bytes_in_order, Index rows, Index row_bytes,
                      Index row, std::uint8_t* packed) {
  const RowPlace place = row_place(rows, row_bytes, row);
  for (Index b = 0; b < row_bytes; ++b) {
    packed[place.offset + b * place.stride] = row_bytes_in_order[b];
  }
}

namespace code_panels {

inline constexpr Index kBlock = 8;

// Eight words of eight bytes: byte j of word i becomes byte i of word j.
inline void transpose(std::uint64_t (&words)[kBlock]) {
  constexpr std::uint64_t kMasks[] = {0x00000000ffffffff, 0x0000ffff0000ffff, 0x00ff00ff00ff00ff};
  int mask = 0;
  for (Index distance = kBlock / 2; distance >= 1; distance /= 2, ++mask) {
    const Index shift = 8 * distance;
    for (Index i = 0; i < kBlock; ++i) {
      if (i & distance) continue;
      const std::uint64_t swapped = ((words[i] >> shift) ^ words[i + distance]) & kMasks[mask];
      words[i + distance] ^= swapped;
      words[i] ^= swapped << shift;
    }
  }
}

}  // namespace code_panels

// Rows [first_row, first_row + count) of one panel, row after row: (count, row_bytes).
inline void read_rows(const std::uint8_t* packed, Index rows, Index row_bytes, Index first_row,
                      Index count, std::uint8_t* out) {
  constexpr Index kBlock = code_panels::kBlock;
  const RowPlace place = row_place(rows, row_bytes, first_row);
  const std::uint8_t* source = packed + place.offset;
  Index b = 0;
  for (; count == kBlock && b + kBlock <= row_bytes; b += kBlock) {
    std::uint64_t words[kBlock];
    for (Index i = 0; i < kBlock; ++i) {
      std::memcpy(words + i, source + (b + i) * place.stride, kBlock);
    }
    code_panels::transpose(words);
    for (Index i = 0; i < kBlock; ++i) std::memcpy(out + i * row_bytes + b, words + i, kBlock);
  }
  for (; b < row_bytes; ++b) {
    for (Index r = 0; r < count; ++r) out[r * row_bytes + b] = source[b * place.stride + r];
  }
}

// Walks over rows, most of them in order, and gives their bytes in order.
class RowReader {
 public:
  RowReader(const std::uint8_t* packed, Index rows, Index row_bytes)
      : packed_(packed),
        rows_(rows),
        row_bytes_(row_bytes),
        buffer_(static_cast<std::size_t>(kGroup * row_bytes)) {}

  Index row_bytes() const { return row_bytes_; }

  // Valid until the next call.
  const std::uint8_t* row(Index k) {
    const Index first = k / kGroup * kGroup;
    if (first != first_) {
      read_rows(packed_, rows_, row_bytes_, first, std::min(kGroup, rows_ - first), buffer_.data());
      first_ = first;
    }
    return buffer_.data() + (k - first) * row_bytes_;
  }

 private:
  static constexpr Index kGroup = code_panels::kBlock;  // divides kPanelRows

  const std::uint8_t* packed_;
  Index rows_;
  Index row_bytes_;
  Index first_ = -1;
  std::vector<std::uint8_t> buffer_;
};

}  // namespace llava_fa

// Stored codes as kernels read them: strips of 16 rows of a panel, whose bytes of one column lie
// side by side (code_panels.hpp) and are one 16-byte load. Codes of 8 columns fill whole bytes,
// whatever their width.
#pragma once

#include <cstdint>

#include "../code_panels.hpp"
#include "host_device.hpp"

namespace llava_fa::cuda {

inline constexpr int kStripRows = 16;
inline constexpr int kStripsPerPanel = static_cast<int>(kPanelRows) / kStripRows;
inline constexpr int kGroupColumns = 8;
static_assert(kPanelRows % kStripRows == 0);

// Codes of a matrix (rows, cols) in device memory; the device's CodedMatrix. Columns here are as
// stored (place_of in trellis.hpp).
struct CodedRows {
  const std::uint8_t* codes;  // 16-byte aligned
  const float* row_scale;     // (rows)
  Index rows;
  Index cols;
  Index row_bytes;  // packed_row_bytes(cols, code_bits)
  int code_bits;
};

// One byte of each of 16 rows: row r is byte r % 4 of word r / 4.
struct alignas(16) StripBytes {
  std::uint32_t word[4];
};

// Byte `byte` of the rows first_row .. first_row + 15, first_row being a multiple of 16; zero for
// rows and bytes that the matrix does not have.
LLAVA_FA_SHARED StripBytes load_strip(const CodedRows& matrix, Index first_row, Index byte) {
  StripBytes strip = {};
  if (byte >= matrix.row_bytes) return strip;
  const RowPlace place = row_place(matrix.rows, matrix.row_bytes, first_row);
  const std::uint8_t* source = matrix.codes + place.offset + byte * place.stride;
  if (place.stride == kPanelRows) {
#if defined(__CUDA_ARCH__)
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(source));
    return {{words.x, words.y, words.z, words.w}};
#else
    std::memcpy(&strip, source, sizeof(strip));
    return strip;
#endif
  }
  LLAVA_FA_UNROLL
  for (int r = 0; r < kStripRows; ++r) {  // the last panel, whose rows are not aligned
    if (first_row + r < matrix.rows) {
      strip.word[r / 4] |= static_cast<std::uint32_t>(source[r]) << (8 * (r % 4));
    }
  }
  return strip;
}

// Bits of a row from bit `shift` of a byte on, when the next byte is `next`: enough for any code.
LLAVA_FA_SHARED std::uint32_t code_in_bytes(std::uint32_t byte, std::uint32_t next, int shift,
                                            int code_bits) {
  return ((byte | next << 8) >> shift) & ((1u << code_bits) - 1);
}

// Code of row `row` of a strip, in the column-th of the columns whose bytes are given. The compiler
// knows all but the bytes.
template <int code_bits, int count>
LLAVA_FA_SHARED std::uint32_t code_of(const StripBytes (&bytes)[count], int row, int column) {
  const int byte = column * code_bits / 8, shift = column * code_bits % 8;
  const int word = row / 4, place = 8 * (row % 4);
  const int here = 8 - shift;  // bits of the code in its first byte, if it has as many
  const std::uint32_t low = bytes[byte].word[word] >> (place + shift);
  if (code_bits <= here) return low & ((1u << code_bits) - 1);
  const std::uint32_t high = bytes[byte + 1].word[word] >> place;
  return (low & ((1u << here) - 1)) | (high & ((1u << (code_bits - here)) - 1)) << here;
}

// The same for any column and width: the bytes are those of its first bit and the next one.
LLAVA_FA_SHARED std::uint32_t code_of(const StripBytes& byte, const StripBytes& next, int row,
                                      int shift, int code_bits) {
  const int word = row / 4, place = 8 * (row % 4);
  return code_in_bytes(byte.word[word] >> place & 255, next.word[word] >> place & 255, shift,
                       code_bits);
}

// Code of one entry.
LLAVA_FA_SHARED std::uint32_t code_at(const CodedRows& matrix, Index row, Index column) {
  const RowPlace place = row_place(matrix.rows, matrix.row_bytes, row);
  const Index bit = column * matrix.code_bits, byte = bit / 8;
  const std::uint8_t* source = matrix.codes + place.offset + byte * place.stride;
  const std::uint32_t next = byte + 1 < matrix.row_bytes ? source[place.stride] : 0;
  return code_in_bytes(*source, next, static_cast<int>(bit % 8), matrix.code_bits);
}

}  // namespace llava_fa::cuda

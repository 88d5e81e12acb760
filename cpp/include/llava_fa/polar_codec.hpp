// PolarQuant: rows of complex entries to packed code indices with one scale per row, and back
// (design section 3).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "llava_fa/constellation.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

// Packed rows lie in panels of so many rows, the last of which may have fewer.
inline constexpr Index kPanelRows = 64;

// Code indices of one matrix. In a row, the code stored at place j occupies bits [j * code_bits,
// (j+1) * code_bits) of a little-endian bit stream, and the padding bits of the last byte are zero.
// It is that of column j; of the trellis, that of the column whose stored_column is j
// (trellis.hpp). The panel that starts at row k occupies the bytes from k * row_bytes on; within it
// come byte 0 of all its rows, then byte 1 of all, and so on.
struct PolarCodes {
  Index rows = 0;
  Index cols = 0;
  int code_bits = 0;
  std::vector<std::uint8_t> packed;      // rows * row_bytes
  std::vector<std::uint16_t> row_scale;  // rows, IEEE binary16 bit patterns
};

// Bytes of one packed row: ceil(cols * code_bits / 8).
constexpr Index packed_row_bytes(Index cols, int code_bits) { return (cols * code_bits + 7) / 8; }

// Nearest point of the constellation for every entry; the row scale is then refitted by (weighted)
// least squares and rounded to binary16.
//
// values        (rows, cols) complex; on return holds the decoded values if write_back
// column_weight (cols) squared weights of the refit, or empty for all ones
// Throws Error(invalid_argument) if a row scale does not fit binary16 (normalize the matrix first).
PolarCodes polar_encode(ComplexMatrix& values, const Constellation& points, bool write_back,
                        std::span<const float> column_weight = {});

// Decodes rows [first_row, first_row + row_count) of `rows` into planes of (row_count, cols).
void polar_decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                       Index cols, const Constellation& points, Index first_row, Index row_count,
                       float* real, float* imag);

ComplexMatrix polar_decode(const PolarCodes& codes, const Constellation& points);

// Bit packing alone, for one row in order; `codes` < 2^code_bits.
void pack_codes(std::span<const std::uint16_t> codes, int code_bits, std::uint8_t* packed);
void unpack_codes(const std::uint8_t* packed, int code_bits, std::span<std::uint16_t> codes);

// The codes of one row of a matrix, as they are stored.
std::vector<std::uint16_t> codes_of_row(const PolarCodes& codes, Index row);

}  // namespace llava_fa

// PolarQuant: rows of complex entries to packed code indices with one scale per row, and back
// (design section 3).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "llava_fa/constellation.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

// Code indices of one matrix. Row k occupies bytes [k * row_bytes, (k+1) * row_bytes); within a row
// entry l occupies bits [l * code_bits, (l+1) * code_bits) of a little-endian bit stream, and the
// padding bits of the last byte are zero.
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

// Decodes rows [first_row, first_row + row_count) into planes of (row_count, cols).
void polar_decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index cols,
                       const Constellation& points, Index first_row, Index row_count, float* real,
                       float* imag);

ComplexMatrix polar_decode(const PolarCodes& codes, const Constellation& points);

// Bit packing alone, for one row; `codes` < 2^code_bits.
void pack_codes(std::span<const std::uint16_t> codes, int code_bits, std::uint8_t* packed);
void unpack_codes(const std::uint8_t* packed, int code_bits, std::span<std::uint16_t> codes);

}  // namespace llava_fa

// Trellis code: entries of one column, coded jointly down the rows (design section 3; bit-shift
// trellis after QTIP, arXiv 2406.11235).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "llava_fa/polar_codec.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

inline constexpr int kMinStateBits = 8;
inline constexpr int kMaxStateBits = 16;
inline constexpr int kMaxTrellisCodeBits = 8;
inline constexpr int kDefaultStateBits = 12;
inline constexpr int kLevelBits = 5;  // coarse levels are multiples of 2^-5

// Columns l and n - l that are mirror images: the pairs with 0 < l < n/2.
constexpr Index column_pairs(Index n) { return (n - 1) / 2; }

// The place of a column's codes in a row: next to those of its mirror image, as a product with a
// spectrum multiplies the one with an entry and the other with its conjugate. Columns that are
// their own mirror images come last (docs/format.md).
constexpr Index stored_column(Index n, Index column) {
  const Index pairs = column_pairs(n);
  if (column == 0) return 2 * pairs;
  if (2 * column == n) return 2 * pairs + 1;
  return 2 * column < n ? 2 * (column - 1) : 2 * (n - column - 1) + 1;
}

// Its inverse: the column whose codes are at a place.
constexpr Index column_stored_at(Index n, Index place) {
  const Index pairs = column_pairs(n);
  if (place >= 2 * pairs) return place == 2 * pairs ? 0 : n / 2;
  return place % 2 == 0 ? 1 + place / 2 : n - 1 - place / 2;
}

// 2^state_bits complex points, one per state. The state of an entry is the last `state_bits` bits
// of its column's codes, newest in the low bits; every entry adds `code_bits` of them.
//
// A point follows from look-ups in tables of 16 entries, whatever the number of states. With n_i
// the i-th nibble of the state, newest first,
//   c = coarse_index[0][n_0] ^ ... ^ coarse_index[3][n_3],  f likewise from fine_index,
//   real = level(c & 15, f & 15),  imag = level(c >> 4, f >> 4),
//   level(i, j) = (coarse[i] 2^fine_shift + fine[j]) 2^-(kLevelBits + fine_shift).
// Both indices are linear over GF(2), so the nibbles that a shorter state lacks drop out.
struct Trellis {
  int code_bits = 0;
  int state_bits = 0;
  std::array<std::array<std::uint8_t, 16>, kMaxStateBits / 4> coarse_index = {};
  std::array<std::array<std::uint8_t, 16>, kMaxStateBits / 4> fine_index = {};
  std::array<std::int8_t, 16> coarse = {};
  std::array<std::int8_t, 16> fine = {};
  bool has_fine = false;            // else `fine` is zero and `fine_index` of no effect
  int fine_shift = 0;               // 0: sums of two levels coarse + fine fit a byte
  std::vector<float> point_real;    // 2^state_bits, relative to the row's root mean square
  std::vector<float> point_imag;    // 2^state_bits
  std::vector<float> point_pairs;   // the same, real and imaginary parts in turn
  std::vector<float> point_energy;  // |point|^2

  // c and f above.
  struct PointIndex {
    std::uint8_t coarse;
    std::uint8_t fine;
  };
  PointIndex index_of(std::uint32_t state) const {
    PointIndex index = {0, 0};
    for (std::size_t i = 0; i < coarse_index.size(); ++i, state >>= 4) {
      index.coarse ^= coarse_index[i][state & 15];
      index.fine ^= fine_index[i][state & 15];
    }
    return index;
  }

  // The code of stored_code, for each of the 2^code_bits codes; linear over GF(2).
  std::array<std::uint8_t, 256> code_of_stored = {};

  // What is stored for the newest code of a state: at 8 bits, its own coarse index, which tells
  // codes apart. Kernels then have that without a look-up (docs/format.md). Else the code itself.
  std::uint8_t stored_code(std::uint32_t state) const {
    const std::uint32_t code = state & ((1u << code_bits) - 1);
    return code_bits == 8 ? index_of(code).coarse : static_cast<std::uint8_t>(code);
  }

  // The state after the stored codes of as many rows as it reaches, newest in the low bits.
  std::uint32_t state_of(std::uint32_t stored_codes) const {
    std::uint32_t state = stored_codes;
    if (code_bits == 8) {
      state = code_of_stored[stored_codes & 255] | code_of_stored[stored_codes >> 8 & 255] << 8;
    }
    return state & ((1u << state_bits) - 1);
  }
  PointIndex index_of_codes(std::uint32_t stored_codes) const {
    return index_of(state_of(stored_codes));
  }
};

// Built once per (code_bits, state_bits) and cached; thread-safe.
// Throws Error(invalid_argument) unless 1 <= code_bits <= 8 and code_bits <= state_bits <= 16.
// Matrices ask for 8 bits or more (kMinStateBits) and get fewer only in a short segment.
const Trellis& trellis(int code_bits, int state_bits);

// The rows of a matrix are cut into segments that are coded on their own, so that threads share a
// column. Within a segment the code is circular: the rows before the first are the last ones, which
// spares storing an initial state.
inline constexpr Index kSegmentRows = 256;  // whole panels
constexpr Index segment_count(Index rows) { return rows < kSegmentRows ? 1 : rows / kSegmentRows; }
// First row of segment s; segment_count(rows) gives `rows`. The last segment takes what is left.
constexpr Index segment_begin(Index rows, Index s) {
  return s == segment_count(rows) ? rows : s * kSegmentRows;
}
constexpr Index segment_of(Index rows, Index row) {
  const Index last = segment_count(rows) - 1;
  return row < last * kSegmentRows ? row / kSegmentRows : last;
}

// State bits that a matrix of `rows` rows uses: a state holds at most a quarter of its segment,
// else the circle leaves the search no choice.
constexpr int effective_state_bits(Index rows, int code_bits, int state_bits) {
  if (rows >= 4 * state_bits) return state_bits;
  return std::clamp(static_cast<int>(rows) * code_bits / 4, code_bits, state_bits);
}

// Viterbi encoding of every column under the squared error, then row scales refitted by least
// squares. Arguments, result and errors as in polar_encode; `state_bits` is reduced by
// effective_state_bits.
PolarCodes trellis_encode(ComplexMatrix& values, int code_bits, int state_bits, bool write_back,
                          std::span<const float> column_weight = {});

// Mean squared error of the code on a unit-power circular Gaussian, measured once on a seeded
// sample of 16,384 entries and cached; thread-safe. `state_bits` is not reduced.
double trellis_distortion(int code_bits, int state_bits);

// Decodes rows [first_row, first_row + row_count) of `codes` into planes of (row_count, cols).
// Reads only these rows and ceil(state_bits / code_bits) - 1 rows before each.
void trellis_decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                         Index cols, int code_bits, int state_bits, Index first_row,
                         Index row_count, float* real, float* imag);

ComplexMatrix trellis_decode(const PolarCodes& codes, int state_bits);

}  // namespace llava_fa

// States of the trellis in kernels. Twin of ../cpu/trellis.cpp: state = (state << code_bits | code)
// down the rows, entered anywhere from the rows before, circularly within the segment. Here codes
// are as stored, and a state has 16 bits of them; TrellisTable gives those beyond its length no
// effect.
#pragma once

#include "code_strips.hpp"
#include "llava_fa/trellis.hpp"

namespace llava_fa::cuda {

// Where a column lies in a row's codes, and in spectra, which have the order of the codes that they
// are multiplied with.
LLAVA_FA_SHARED Index place_of(bool trellis, Index n, Index column) {
  return trellis ? stored_column(n, column) : column;
}

// Rows that a state holds codes of.
constexpr int rows_of_state(int code_bits, int state_bits) {
  return (state_bits + code_bits - 1) / code_bits;
}

// The row `back` rows before `row`, circularly within its segment.
LLAVA_FA_SHARED Index row_before(Index rows, Index row, Index back) {
  const Index segment = segment_of(rows, row);
  const Index begin = segment_begin(rows, segment);
  const Index length = segment_begin(rows, segment + 1) - begin;
  return begin + (row - begin + length - back % length) % length;
}

LLAVA_FA_SHARED std::uint32_t next_state(std::uint32_t state, std::uint32_t code, int code_bits) {
  return ((state << code_bits) | code) & ((1u << kMaxStateBits) - 1);
}

// State of the row before `row` in the column at `place`; states hold codes of `depth` rows.
LLAVA_FA_SHARED std::uint32_t state_before(const CodedRows& matrix, int depth, Index row,
                                           Index place) {
  std::uint32_t state = 0;
  LLAVA_FA_KEEP_LOOP
  for (int back = depth - 1; back >= 1; --back) {
    const std::uint32_t code = code_at(matrix, row_before(matrix.rows, row, back), place);
    state = state << matrix.code_bits | code;
  }
  return state;
}

// The same for neighbouring columns whose codes fill the bytes from first_byte on; states are zero
// before.
template <int code_bits, int bytes, int columns>
LLAVA_FA_SHARED void states_before(const CodedRows& matrix, int depth, Index row, Index first_byte,
                                   std::uint32_t (&states)[columns]) {
  LLAVA_FA_KEEP_LOOP
  for (int back = depth - 1; back >= 1; --back) {
    const Index before = row_before(matrix.rows, row, back);
    const RowPlace place = row_place(matrix.rows, matrix.row_bytes, before);
    StripBytes codes[bytes] = {};  // of one row, as row 0 of a strip
    LLAVA_FA_UNROLL
    for (int b = 0; b < bytes; ++b) {
      if (first_byte + b < matrix.row_bytes) {
        codes[b].word[0] = matrix.codes[place.offset + (first_byte + b) * place.stride];
      }
    }
    LLAVA_FA_UNROLL
    for (int c = 0; c < columns; ++c) {
      states[c] = states[c] << code_bits | code_of<code_bits>(codes, 0, c);
    }
  }
}

}  // namespace llava_fa::cuda

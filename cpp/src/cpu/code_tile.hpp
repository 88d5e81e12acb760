// Codes of a few rows, transposed: what is in consecutive bytes belongs to consecutive rows, so
// that one vector instruction treats the same column of 32 rows.
#pragma once

#if defined(__AVX2__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "row_unpacker.hpp"

namespace llava_fa::cpu {

inline constexpr Index kTileRows = 32;
inline constexpr Index kTileBytes = 64;  // of every row: one cache line

// bytes[b][r] is byte b of row r, and 0 for rows beyond the matrix.
struct alignas(64) CodeTile {
  std::uint8_t bytes[kTileBytes][kTileRows];

  __m256i column(Index b) const {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes[b]));
  }

  // Bytes [first_byte, first_byte + 64) of rows [first_row, first_row + 32) of (rows, row_bytes).
  // Beyond the end of a row come bytes of the next, or zeros.
  void load(const std::uint8_t* packed, Index rows, Index row_bytes, Index first_row,
            Index first_byte) {
    // Copied first: rows a power of two apart share few places in the first cache.
    Lines lines;
    for_rows(packed, rows, row_bytes, first_row, first_byte, lines,
             [](const std::uint8_t* source, std::uint8_t* line) {
               std::memcpy(line, source, kTileBytes);
             });
    transpose(lines);
  }

  // The same for codes that are widened to fields: 64 bytes of fields from fewer bytes of the rows.
  void load_widened(const std::uint8_t* packed, Index rows, Index row_bytes, Index first_row,
                    Index first_byte, const FieldWidening& widening) {
    Lines lines;
    for_rows(packed, rows, row_bytes, first_row, first_byte, lines,
             [&](const std::uint8_t* source, std::uint8_t* line) {
               for (Index word = 0; word < 8; ++word) {
                 std::memcpy(line + 8 * word, source + widening.word_bytes() * word, 8);
               }
               for (Index half = 0; half < kTileBytes; half += 32) {
                 auto* words = reinterpret_cast<__m256i*>(line + half);
                 _mm256_store_si256(words, widening.widen(_mm256_load_si256(words)));
               }
             });
    transpose(lines);
  }

 private:
  struct alignas(64) Lines {
    std::uint8_t bytes[kTileRows][kTileBytes];
  };

  // read(source, line) for every row; it may read 64 bytes.
  template <typename Read>
  static void for_rows(const std::uint8_t* packed, Index rows, Index row_bytes, Index first_row,
                       Index first_byte, Lines& lines, Read read) {
    const Index present = std::min(kTileRows, rows - first_row);
    if (present < kTileRows) std::memset(lines.bytes, 0, sizeof(lines.bytes));
    for (Index r = 0; r < present; ++r) {
      const Index offset = (first_row + r) * row_bytes + first_byte;
      const Index left = rows * row_bytes - offset;
      if (left >= kTileBytes) {
        read(packed + offset, lines.bytes[r]);
        _mm_prefetch(reinterpret_cast<const char*>(packed + offset + kPrefetch), _MM_HINT_T1);
      } else {
        std::uint8_t last[kTileBytes] = {};
        std::memcpy(last, packed + offset, static_cast<std::size_t>(left));
        read(last, lines.bytes[r]);
      }
    }
  }

  static constexpr Index kPrefetch = 4 * kTileBytes;  // how far ahead rows are asked for

  // Four times 16 columns; each register has 16 bytes of row i and of row i + 16.
  void transpose(const Lines& lines) {
    for (Index part = 0; part < kTileBytes; part += 16) {
      const auto load = [&](Index row) {
        return _mm_load_si128(reinterpret_cast<const __m128i*>(lines.bytes[row] + part));
      };
      __m256i in[16], out[16];
      for (int i = 0; i < 16; ++i) {
        in[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load(i)), load(i + 16), 1);
      }
      interleave(in, out);
      interleave(out, in);
      interleave(in, out);
      interleave(out, in);
      for (int i = 0; i < 16; ++i) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(bytes[part + i]), in[i]);
      }
    }
  }

  // Bytes of registers i and i + 8 in turn. After four times register b holds byte b of all rows.
  static void interleave(const __m256i (&in)[16], __m256i (&out)[16]) {
    for (int i = 0; i < 8; ++i) {
      out[2 * i] = _mm256_unpacklo_epi8(in[i], in[i + 8]);
      out[2 * i + 1] = _mm256_unpackhi_epi8(in[i], in[i + 8]);
    }
  }
};

}  // namespace llava_fa::cpu

#endif  // __AVX2__

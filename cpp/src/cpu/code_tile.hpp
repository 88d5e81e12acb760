// Codes of a few rows, transposed: what is in consecutive bytes belongs to consecutive rows, so
// that one vector instruction treats the same column of 32 rows.
#pragma once

#if defined(__AVX2__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

inline constexpr Index kTileRows = 32;
inline constexpr Index kTileBytes = 64;  // of every row: one cache line

// bytes[b][r] is byte b of row r, and 0 beyond the matrix.
struct alignas(64) CodeTile {
  std::uint8_t bytes[kTileBytes][kTileRows];

  __m256i column(Index b) const {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes[b]));
  }

  // Bytes [first_byte, first_byte + 64) of rows [first_row, first_row + 32) of (rows, row_bytes).
  void load(const std::uint8_t* packed, Index rows, Index row_bytes, Index first_row,
            Index first_byte) {
    const std::uint8_t* corner = packed + first_row * row_bytes + first_byte;
    const Index present_rows = std::min(kTileRows, rows - first_row);
    const Index present_bytes = std::min(kTileBytes, row_bytes - first_byte);
    // Copied first: rows a power of two apart share few places in the first cache.
    alignas(64) std::uint8_t lines[kTileRows][kTileBytes];
    if (present_rows == kTileRows && present_bytes == kTileBytes) {
      for (Index r = 0; r < kTileRows; ++r) {
        std::memcpy(lines[r], corner + r * row_bytes, kTileBytes);
        _mm_prefetch(reinterpret_cast<const char*>(corner + r * row_bytes + kPrefetch),
                     _MM_HINT_T1);
      }
    } else {
      std::memset(lines, 0, sizeof(lines));
      for (Index r = 0; r < present_rows; ++r) {
        std::memcpy(lines[r], corner + r * row_bytes, static_cast<std::size_t>(present_bytes));
      }
    }
    transpose(lines);
  }

  // The same for rows of 3-bit codes, each widened to four bits: 48 bytes become 64.
  void load_three_bit(const std::uint8_t* packed, Index rows, Index row_bytes, Index first_row,
                      Index first_byte) {
    constexpr Index kSource = kTileBytes * 3 / 4;
    alignas(64) std::uint8_t lines[kTileRows][kTileBytes] = {};
    const Index present_bytes = std::min(kSource, row_bytes - first_byte);
    for (Index r = 0; r < std::min(kTileRows, rows - first_row); ++r) {
      std::uint8_t stream[kSource + 2] = {};  // words of eight bytes are read every six
      std::memcpy(stream, packed + (first_row + r) * row_bytes + first_byte,
                  static_cast<std::size_t>(present_bytes));
      for (Index word = 0; word < 8; ++word) {
        std::uint64_t codes;
        std::memcpy(&codes, stream + 6 * word, sizeof(codes));
        codes = _pdep_u64(codes, 0x7777777777777777);
        std::memcpy(lines[r] + 8 * word, &codes, sizeof(codes));
      }
    }
    transpose(lines);
  }

 private:
  static constexpr Index kPrefetch = 4 * kTileBytes;  // how far ahead rows are asked for

  // Four times 16 columns; each register has 16 bytes of row i and of row i + 16.
  void transpose(const std::uint8_t (&lines)[kTileRows][kTileBytes]) {
    for (Index part = 0; part < kTileBytes; part += 16) {
      const auto load = [&](Index row) {
        return _mm_load_si128(reinterpret_cast<const __m128i*>(lines[row] + part));
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

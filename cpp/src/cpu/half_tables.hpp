// Maps of bytes that are linear over GF(2), in registers: the exclusive or of one table entry for
// each half of a byte.
#pragma once

#if defined(__AVX2__)

#include <immintrin.h>

#include <cstdint>

#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

inline constexpr Index kTableSize = 16;

// One table in both halves of a register.
inline __m256i load_table(const std::uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

inline __m256i low_halves(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline __m256i high_halves(__m256i bytes) { return low_halves(_mm256_srli_epi16(bytes, 4)); }

struct Halves {
  __m256i low, high;
};
inline Halves halves_of(__m256i bytes) { return {low_halves(bytes), high_halves(bytes)}; }

class HalfTables {
 public:
  using Bytes = std::uint8_t[2][kTableSize];  // of low and of high halves

  explicit HalfTables(const Bytes& bytes)
      : low_(load_table(bytes[0])), high_(load_table(bytes[1])) {}

  __m256i look_up(Halves halves) const {
    return _mm256_xor_si256(_mm256_shuffle_epi8(low_, halves.low),
                            _mm256_shuffle_epi8(high_, halves.high));
  }

 private:
  __m256i low_, high_;
};

}  // namespace llava_fa::cpu

#endif  // __AVX2__

// Registers of x86-64-v3: AVX2 and FMA. registers.hpp says what the functions do.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

using Register = __m256i;  // &, | and ^ are the compiler's
using Floats = __m256;     // so are +, * and unary -

[[gnu::always_inline]] inline Register load_bytes(const void* place) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(place));
}
[[gnu::always_inline]] inline void store_bytes(void* place, Register bytes) {
  _mm256_storeu_si256(static_cast<__m256i*>(place), bytes);
}
[[gnu::always_inline]] inline Register load_table(const std::uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

[[gnu::always_inline]] inline Register all8(int value) {
  return _mm256_set1_epi8(static_cast<char>(value));
}
[[gnu::always_inline]] inline Register all16(int value) {
  return _mm256_set1_epi16(static_cast<short>(value));
}
[[gnu::always_inline]] inline Register all32(std::int32_t value) {
  return _mm256_set1_epi32(value);
}
[[gnu::always_inline]] inline Register all64(std::uint64_t value) {
  return _mm256_set1_epi64x(static_cast<long long>(value));
}

[[gnu::always_inline]] inline Register add8(Register a, Register b) {
  return _mm256_add_epi8(a, b);
}
[[gnu::always_inline]] inline Register sub8(Register a, Register b) {
  return _mm256_sub_epi8(a, b);
}
[[gnu::always_inline]] inline Register add16(Register a, Register b) {
  return _mm256_add_epi16(a, b);
}
[[gnu::always_inline]] inline Register sub16(Register a, Register b) {
  return _mm256_sub_epi16(a, b);
}
[[gnu::always_inline]] inline Register add32(Register a, Register b) {
  return _mm256_add_epi32(a, b);
}
[[gnu::always_inline]] inline Register sub32(Register a, Register b) {
  return _mm256_sub_epi32(a, b);
}

[[gnu::always_inline]] inline Register shift_left16(Register a, int count) {
  return _mm256_slli_epi16(a, count);
}
[[gnu::always_inline]] inline Register shift_right16(Register a, int count) {
  return _mm256_srli_epi16(a, count);
}
[[gnu::always_inline]] inline Register shift_left32(Register a, int count) {
  return _mm256_slli_epi32(a, count);
}
[[gnu::always_inline]] inline Register shift_right_signed32(Register a, int count) {
  return _mm256_srai_epi32(a, count);
}
[[gnu::always_inline]] inline Register shift_left64(Register a, int count) {
  return _mm256_sll_epi64(a, _mm_cvtsi32_si128(count));
}

[[gnu::always_inline]] inline Register negative8(Register a) {
  return _mm256_cmpgt_epi8(_mm256_setzero_si256(), a);
}
[[gnu::always_inline]] inline Register choose8(Register a, Register b, Register which) {
  return _mm256_blendv_epi8(a, b, which);
}

[[gnu::always_inline]] inline Register table_entries(Register table, Register index) {
  return _mm256_shuffle_epi8(table, index);
}
// A set top bit gives zero, else the low four bits count.
[[gnu::always_inline]] inline Register table_index(Register fields) { return fields; }
[[gnu::always_inline]] inline Register table_index(Register fields, Index j) {
  const Register differences = fields ^ all8(static_cast<int>(16 * j));
  return _mm256_adds_epu8(differences, all8(0x70));
}

[[gnu::always_inline]] inline Register interleave_low8(Register a, Register b) {
  return _mm256_unpacklo_epi8(a, b);
}
[[gnu::always_inline]] inline Register interleave_high8(Register a, Register b) {
  return _mm256_unpackhi_epi8(a, b);
}
[[gnu::always_inline]] inline Register interleave_low16(Register a, Register b) {
  return _mm256_unpacklo_epi16(a, b);
}
[[gnu::always_inline]] inline Register interleave_high16(Register a, Register b) {
  return _mm256_unpackhi_epi16(a, b);
}

[[gnu::always_inline]] inline Register multiply_rounded16(Register a, Register b) {
  return _mm256_mulhrs_epi16(a, b);
}
[[gnu::always_inline]] inline Register pair_sums8(Register a, Register b) {
  return _mm256_maddubs_epi16(a, b);
}
[[gnu::always_inline]] inline Register pair_sums16(Register a, Register b) {
  return _mm256_madd_epi16(a, b);
}
[[gnu::always_inline]] inline Register even_words(Register a) { return pair_sums16(a, all32(1)); }
[[gnu::always_inline]] inline Register odd_words(Register a) {
  return pair_sums16(a, all32(1 << 16));
}

[[gnu::always_inline]] inline Floats all_floats(float value) { return _mm256_set1_ps(value); }
[[gnu::always_inline]] inline Floats load_floats(const float* place) {
  return _mm256_loadu_ps(place);
}
[[gnu::always_inline]] inline void store_floats(float* place, Floats values) {
  _mm256_storeu_ps(place, values);
}
[[gnu::always_inline]] inline Floats as_floats(Register bits) { return _mm256_castsi256_ps(bits); }
[[gnu::always_inline]] inline Register as_bytes(Floats values) {
  return _mm256_castps_si256(values);
}
[[gnu::always_inline]] inline Floats to_float(Register a) { return _mm256_cvtepi32_ps(a); }
[[gnu::always_inline]] inline Register to_nearest(Floats a) { return _mm256_cvtps_epi32(a); }
[[gnu::always_inline]] inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}
[[gnu::always_inline]] inline Floats subtract_product(Floats a, Floats b, Floats c) {
  return _mm256_fnmadd_ps(a, b, c);
}

template <int kPlanes>
[[gnu::always_inline]] inline void split_bytes(const Register (&numbers)[2], std::uint8_t* planes) {
  const __m256i in_half = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const auto eight_each = [&](Register eight) {
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(eight, in_half),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  };
  const __m256i first = eight_each(numbers[0]), second = eight_each(numbers[1]);
  const __m256i even = _mm256_unpacklo_epi64(first, second);
  const __m256i odd = _mm256_unpackhi_epi64(first, second);
  const __m128i all[] = {_mm256_castsi256_si128(even), _mm256_castsi256_si128(odd),
                         _mm256_extracti128_si256(even, 1), _mm256_extracti128_si256(odd, 1)};
  for (int plane = 0; plane < kPlanes; ++plane) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + 16 * plane), all[plane]);
  }
}

[[gnu::always_inline]] inline void split_pairs(Floats a, Floats b, Floats& even, Floats& odd) {
  const auto ordered = [](__m256 part) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(part), 0xd8));
  };
  even = ordered(_mm256_shuffle_ps(a, b, 0x88));
  odd = ordered(_mm256_shuffle_ps(a, b, 0xdd));
}

[[gnu::always_inline]] inline Floats load_pairs(const float* pairs, const std::uint16_t* index) {
  const auto pair = [&](Index i) {
    double both;  // of which no arithmetic is done
    std::memcpy(&both, pairs + 2 * index[i], sizeof both);
    return both;
  };
  return _mm256_castpd_ps(_mm256_setr_pd(pair(0), pair(1), pair(2), pair(3)));
}

[[gnu::always_inline]] inline void store_widened8(std::uint16_t* place, Register a) {
  store_bytes(place, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)));
  store_bytes(place + 16, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(a, 1)));
}

}  // namespace llava_fa::cpu

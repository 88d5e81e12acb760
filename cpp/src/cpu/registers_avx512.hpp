// Registers of x86-64-v4: AVX-512. registers.hpp says what the functions do.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

using Register = __m512i;  // &, | and ^ are the compiler's
using Floats = __m512;     // so are +, * and unary -

[[gnu::always_inline]] inline Register load_bytes(const void* place) {
  return _mm512_loadu_si512(place);
}
[[gnu::always_inline]] inline void store_bytes(void* place, Register bytes) {
  _mm512_storeu_si512(place, bytes);
}
[[gnu::always_inline]] inline Register load_table(const std::uint8_t* table) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

[[gnu::always_inline]] inline Register all8(int value) {
  return _mm512_set1_epi8(static_cast<char>(value));
}
[[gnu::always_inline]] inline Register all16(int value) {
  return _mm512_set1_epi16(static_cast<short>(value));
}
[[gnu::always_inline]] inline Register all32(std::int32_t value) {
  return _mm512_set1_epi32(value);
}
[[gnu::always_inline]] inline Register all64(std::uint64_t value) {
  return _mm512_set1_epi64(static_cast<long long>(value));
}

[[gnu::always_inline]] inline Register add8(Register a, Register b) {
  return _mm512_add_epi8(a, b);
}
[[gnu::always_inline]] inline Register sub8(Register a, Register b) {
  return _mm512_sub_epi8(a, b);
}
[[gnu::always_inline]] inline Register add16(Register a, Register b) {
  return _mm512_add_epi16(a, b);
}
[[gnu::always_inline]] inline Register sub16(Register a, Register b) {
  return _mm512_sub_epi16(a, b);
}
[[gnu::always_inline]] inline Register add32(Register a, Register b) {
  return _mm512_add_epi32(a, b);
}
[[gnu::always_inline]] inline Register sub32(Register a, Register b) {
  return _mm512_sub_epi32(a, b);
}

[[gnu::always_inline]] inline Register shift_left16(Register a, int count) {
  return _mm512_slli_epi16(a, static_cast<unsigned>(count));
}
[[gnu::always_inline]] inline Register shift_right16(Register a, int count) {
  return _mm512_srli_epi16(a, static_cast<unsigned>(count));
}
[[gnu::always_inline]] inline Register shift_left32(Register a, int count) {
  return _mm512_slli_epi32(a, static_cast<unsigned>(count));
}
[[gnu::always_inline]] inline Register shift_right_signed32(Register a, int count) {
  return _mm512_srai_epi32(a, static_cast<unsigned>(count));
}
[[gnu::always_inline]] inline Register shift_left64(Register a, int count) {
  return _mm512_sll_epi64(a, _mm_cvtsi32_si128(count));
}

[[gnu::always_inline]] inline Register negative8(Register a) {
  return _mm512_movm_epi8(_mm512_movepi8_mask(a));
}
[[gnu::always_inline]] inline Register choose8(Register a, Register b, Register which) {
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(which), a, b);
}

[[gnu::always_inline]] inline Register table_entries(Register table, Register index) {
  return _mm512_shuffle_epi8(table, index);
}
// A set top bit gives zero, else the low four bits count.
[[gnu::always_inline]] inline Register table_index(Register fields) { return fields; }
[[gnu::always_inline]] inline Register table_index(Register fields, Index j) {
  const Register differences = fields ^ all8(static_cast<int>(16 * j));
  return _mm512_adds_epu8(differences, all8(0x70));
}

[[gnu::always_inline]] inline Register interleave_low8(Register a, Register b) {
  return _mm512_unpacklo_epi8(a, b);
}
[[gnu::always_inline]] inline Register interleave_high8(Register a, Register b) {
  return _mm512_unpackhi_epi8(a, b);
}
[[gnu::always_inline]] inline Register interleave_low16(Register a, Register b) {
  return _mm512_unpacklo_epi16(a, b);
}
[[gnu::always_inline]] inline Register interleave_high16(Register a, Register b) {
  return _mm512_unpackhi_epi16(a, b);
}

[[gnu::always_inline]] inline Register multiply_rounded16(Register a, Register b) {
  return _mm512_mulhrs_epi16(a, b);
}
[[gnu::always_inline]] inline Register pair_sums8(Register a, Register b) {
  return _mm512_maddubs_epi16(a, b);
}
[[gnu::always_inline]] inline Register pair_sums16(Register a, Register b) {
  return _mm512_madd_epi16(a, b);
}
[[gnu::always_inline]] inline Register even_words(Register a) { return pair_sums16(a, all32(1)); }
[[gnu::always_inline]] inline Register odd_words(Register a) { return shift_right_signed32(a, 16); }

[[gnu::always_inline]] inline Floats all_floats(float value) { return _mm512_set1_ps(value); }
[[gnu::always_inline]] inline Floats load_floats(const float* place) {
  return _mm512_loadu_ps(place);
}
[[gnu::always_inline]] inline void store_floats(float* place, Floats values) {
  _mm512_storeu_ps(place, values);
}
[[gnu::always_inline]] inline Floats as_floats(Register bits) { return _mm512_castsi512_ps(bits); }
[[gnu::always_inline]] inline Register as_bytes(Floats values) {
  return _mm512_castps_si512(values);
}
[[gnu::always_inline]] inline Floats to_float(Register a) { return _mm512_cvtepi32_ps(a); }
[[gnu::always_inline]] inline Register to_nearest(Floats a) { return _mm512_cvtps_epi32(a); }
[[gnu::always_inline]] inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
[[gnu::always_inline]] inline Floats subtract_product(Floats a, Floats b, Floats c) {
  return _mm512_fnmadd_ps(a, b, c);
}

template <int kPlanes>
[[gnu::always_inline]] inline void split_bytes(const Register (&numbers)[1], std::uint8_t* planes) {
  const __m512i in_part =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i all = _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
      _mm512_shuffle_epi8(numbers[0], in_part));
  _mm512_mask_storeu_epi64(planes, static_cast<__mmask8>((1 << (2 * kPlanes)) - 1), all);
}

[[gnu::always_inline]] inline void split_pairs(Floats a, Floats b, Floats& even, Floats& odd) {
  const __m512i every_second =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = _mm512_permutex2var_ps(a, every_second, b);
  odd = _mm512_permutex2var_ps(a, every_second | all32(1), b);
}

[[gnu::always_inline]] inline Floats load_pairs(const float* pairs, const std::uint16_t* index) {
  const auto pair = [&](Index i) {
    double both;  // of which no arithmetic is done
    std::memcpy(&both, pairs + 2 * index[i], sizeof both);
    return both;
  };
  return _mm512_castpd_ps(
      _mm512_setr_pd(pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)));
}

// Products of bfloat16, which not every processor with AVX-512 has: only functions with this
// attribute may use them.
#define LLAVA_FA_HAS_BFLOAT16
#define LLAVA_FA_BFLOAT16 gnu::target("avx512bf16")

inline bool multiplies_bfloat16() { return __builtin_cpu_supports("avx512bf16"); }

[[LLAVA_FA_BFLOAT16, gnu::always_inline]] inline Register pair_bfloat16(Floats low, Floats high) {
  const __m512i in_turn =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(in_turn,
                                  reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}
[[LLAVA_FA_BFLOAT16, gnu::always_inline]] inline Floats add_pair_products(Floats sums, Register a,
                                                                          Register b) {
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

#if defined(__GFNI__) && defined(__AVX512VBMI__)
#define LLAVA_FA_HAS_BIT_MATRICES

[[gnu::always_inline]] inline Register times_bit_matrix(Register bytes, std::uint64_t matrix) {
  return _mm512_gf2p8affine_epi64_epi8(bytes, all64(matrix), 0);
}
inline std::uint64_t bit_matrix_column(std::uint8_t column, Index bit) {
  std::uint64_t matrix = 0;
  for (Index row = 0; row < 8; ++row) {
    const std::uint64_t entry = column >> row & 1;
    matrix |= entry << (8 * (7 - row) + bit);  // the last row comes first
  }
  return matrix;
}

// The index has six bits, but the table's four parts are the same.
[[gnu::always_inline]] inline Register low_half_entries(Register table, Register bytes) {
  return _mm512_permutexvar_epi8(bytes, table);
}
#endif

[[gnu::always_inline]] inline void store_widened8(std::uint16_t* place, Register a) {
  store_bytes(place, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(a)));
  store_bytes(place + 32, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(a, 1)));
}

}  // namespace llava_fa::cpu

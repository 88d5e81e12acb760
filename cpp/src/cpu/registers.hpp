// Vector registers of the products' kernels, in one vocabulary for all instruction sets that have
// table look-ups in registers: x86-64-v3's and v4's and AArch64's, for which
// LLAVA_FA_HAS_REGISTERS is defined. For others the kernels that need them are left out.
//
// A Register has kVectorRows bytes, 64 for AVX-512 and 32 else, which functions take as numbers
// of 8, 16, 32 or 64 bits, as their names say; Floats are kFloats numbers of float32. What moves
// numbers to other places, as interleaving does, works within each part of 16 bytes, unless it says
// "in order".
//
//   load_bytes, store_bytes         a register at any address
//   load_table(table)               16 bytes, in all parts
//   all8, ..., all64, all_floats    one number everywhere
//   load_floats, store_floats       kFloats floats at any address
//   as_floats(bits), as_bytes       the same bits
//   a & b, a | b, a ^ b             bit by bit; a + b, a * b, -a of Floats
//   add8, add16, add32, sub8, ...   modulo 2^8, 2^16, 2^32
//   shift_left16, shift_right16 ... by one count for all; zeros, or the sign, move in
//   negative8(a)                    all ones where the top bit is set, else zero
//   choose8(a, b, which)            b where the top bit of `which` is set, else a
//   table_entries(table, index)     table[index] of indexes below 16
//   table_index(fields)             index of the low four bits of fields below 128
//   table_index(fields, j)          index in the j-th of up to four tables that follow each other,
//                                   of fields below 64; those of another table will give zero
//   interleave_low8(a, b), ...      a0 b0 a1 b1 ... of the lower (upper) numbers of each part
//   multiply_rounded16(a, b)        the integers nearest to a b / 2^15, halves rounded up; not both
//                                   may be -2^15
//   pair_sums8(a, b)                16 bits, which must hold them: a0 b0 + a1 b1, ..., a without
//                                   sign, b with
//   pair_sums16(a, b)               32 bits: a0 b0 + a1 b1, ..., both with sign
//   even_words, odd_words           32 bits of every second number of 16 bits with sign
//   low_halves, high_halves         the lower and the upper four bits of bytes
//   low_half_entries(table, bytes)  table[...] of them; high_half_entries likewise
//   to_float, to_nearest            between numbers of 32 bits, which must hold them, and Floats
//   split_bytes<n>(numbers, planes) in order: the lowest n bytes of sixteen numbers of 32 bits,
//                                   plane after plane of sixteen bytes
//   split_pairs(a, b, even, odd)    in order: every second float of a, then b, from the first one
//                                   on; from the second one on
//   load_pairs(pairs, index)        kFloats / 2 pairs of floats, those that the indexes tell
//   store_widened8(place, a)        in order: kVectorRows numbers without sign as 16 bits each
//   multiply_add(a, b, c)           a b + c, rounded once; subtract_product: c - a b
//
// Where LLAVA_FA_HAS_BFLOAT16 is defined, functions with the attribute LLAVA_FA_BFLOAT16, which may
// be called if multiplies_bfloat16(), have
//   pair_bfloat16(low, high)        both rounded to bfloat16, in the halves of 32 bits
//   add_pair_products(sums, a, b)   sums + a0 b0 + a1 b1 of every pair, in float32; what is
//                                   subnormal counts as zero
//
// Where LLAVA_FA_HAS_BIT_MATRICES is defined, there are
//   times_bit_matrix(bytes, matrix)  every byte times a matrix of 8 x 8 bits over GF(2)
//   bit_matrix_column(column, bit)   the part of such a matrix that a bit of the byte is multiplied
//                                    with; a matrix is the bitwise or of its eight columns
//
// All are inlined by force: where GCC stops by itself, kernels keep their sums in memory.
#pragma once

#if defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "registers_avx512.hpp"
#define LLAVA_FA_HAS_REGISTERS
#elif defined(__AVX2__)
#include "registers_avx2.hpp"
#define LLAVA_FA_HAS_REGISTERS
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
#include "registers_neon.hpp"
#define LLAVA_FA_HAS_REGISTERS
#endif

#if defined(LLAVA_FA_HAS_REGISTERS)

namespace llava_fa::cpu {

inline constexpr Index kVectorRows = sizeof(Register);  // a byte for each
inline constexpr Index kFloats = sizeof(Floats) / sizeof(float);

[[gnu::always_inline]] inline Register low_halves(Register bytes) { return bytes & all8(15); }
[[gnu::always_inline]] inline Register high_halves(Register bytes) {
  return low_halves(shift_right16(bytes, 4));
}
#if !defined(LLAVA_FA_HAS_BIT_MATRICES)
[[gnu::always_inline]] inline Register low_half_entries(Register table, Register bytes) {
  return table_entries(table, low_halves(bytes));
}
#endif
[[gnu::always_inline]] inline Register high_half_entries(Register table, Register bytes) {
  return low_half_entries(table, shift_right16(bytes, 4));
}

}  // namespace llava_fa::cpu

#endif

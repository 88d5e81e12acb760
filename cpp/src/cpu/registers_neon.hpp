// Registers of AArch64: pairs of NEON's, so that kernels work as with one of twice the size.
// registers.hpp says what the functions do.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

struct Register {
  uint8x16_t half[2];
};

struct Floats {
  float32x4_t half[2];
};

// {function(half of a, half of b, ...)} of both halves, as numbers of other kinds.
template <class Function, class... Registers>
[[gnu::always_inline]] inline Register halves8(Function function, Registers... a) {
  return {{function(a.half[0]...), function(a.half[1]...)}};
}
template <class Function, class... Registers>
[[gnu::always_inline]] inline Register halves16(Function function, Registers... a) {
  return {{vreinterpretq_u8_u16(function(vreinterpretq_u16_u8(a.half[0])...)),
           vreinterpretq_u8_u16(function(vreinterpretq_u16_u8(a.half[1])...))}};
}
template <class Function, class... Registers>
[[gnu::always_inline]] inline Register halves_signed16(Function function, Registers... a) {
  return {{vreinterpretq_u8_s16(function(vreinterpretq_s16_u8(a.half[0])...)),
           vreinterpretq_u8_s16(function(vreinterpretq_s16_u8(a.half[1])...))}};
}
template <class Function, class... Registers>
[[gnu::always_inline]] inline Register halves_signed32(Function function, Registers... a) {
  return {{vreinterpretq_u8_s32(function(vreinterpretq_s32_u8(a.half[0])...)),
           vreinterpretq_u8_s32(function(vreinterpretq_s32_u8(a.half[1])...))}};
}
template <class Function, class... Values>
[[gnu::always_inline]] inline Floats halves_float(Function function, Values... a) {
  return {{function(a.half[0]...), function(a.half[1]...)}};
}

[[gnu::always_inline]] inline Register load_bytes(const void* place) {
  const auto* bytes = static_cast<const std::uint8_t*>(place);
  return {{vld1q_u8(bytes), vld1q_u8(bytes + 16)}};
}
[[gnu::always_inline]] inline void store_bytes(void* place, Register a) {
  auto* bytes = static_cast<std::uint8_t*>(place);
  vst1q_u8(bytes, a.half[0]);
  vst1q_u8(bytes + 16, a.half[1]);
}
[[gnu::always_inline]] inline Register load_table(const std::uint8_t* table) {
  const uint8x16_t bytes = vld1q_u8(table);
  return {{bytes, bytes}};
}

[[gnu::always_inline]] inline Register all8(int value) {
  const uint8x16_t bytes = vdupq_n_u8(static_cast<std::uint8_t>(value));
  return {{bytes, bytes}};
}
[[gnu::always_inline]] inline Register all16(int value) {
  const uint8x16_t bytes = vreinterpretq_u8_u16(vdupq_n_u16(static_cast<std::uint16_t>(value)));
  return {{bytes, bytes}};
}
[[gnu::always_inline]] inline Register all32(std::int32_t value) {
  const uint8x16_t bytes = vreinterpretq_u8_s32(vdupq_n_s32(value));
  return {{bytes, bytes}};
}
[[gnu::always_inline]] inline Register all64(std::uint64_t value) {
  const uint8x16_t bytes = vreinterpretq_u8_u64(vdupq_n_u64(value));
  return {{bytes, bytes}};
}

[[gnu::always_inline]] inline Register operator&(Register a, Register b) {
  return halves8([](auto x, auto y) { return vandq_u8(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register operator|(Register a, Register b) {
  return halves8([](auto x, auto y) { return vorrq_u8(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register operator^(Register a, Register b) {
  return halves8([](auto x, auto y) { return veorq_u8(x, y); }, a, b);
}

[[gnu::always_inline]] inline Register add8(Register a, Register b) {
  return halves8([](auto x, auto y) { return vaddq_u8(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register sub8(Register a, Register b) {
  return halves8([](auto x, auto y) { return vsubq_u8(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register add16(Register a, Register b) {
  return halves16([](auto x, auto y) { return vaddq_u16(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register sub16(Register a, Register b) {
  return halves16([](auto x, auto y) { return vsubq_u16(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register add32(Register a, Register b) {
  return halves_signed32([](auto x, auto y) { return vaddq_s32(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register sub32(Register a, Register b) {
  return halves_signed32([](auto x, auto y) { return vsubq_s32(x, y); }, a, b);
}

// NEON shifts to the left by numbers in a register, to the right by negative ones.
[[gnu::always_inline]] inline Register shift_left16(Register a, int count) {
  const int16x8_t by = vdupq_n_s16(static_cast<std::int16_t>(count));
  return halves16([by](auto x) { return vshlq_u16(x, by); }, a);
}
[[gnu::always_inline]] inline Register shift_right16(Register a, int count) {
  return shift_left16(a, -count);
}
[[gnu::always_inline]] inline Register shift_left32(Register a, int count) {
  const int32x4_t by = vdupq_n_s32(count);
  return halves_signed32([by](auto x) { return vshlq_s32(x, by); }, a);
}
[[gnu::always_inline]] inline Register shift_right_signed32(Register a, int count) {
  return shift_left32(a, -count);
}
[[gnu::always_inline]] inline Register shift_left64(Register a, int count) {
  const int64x2_t by = vdupq_n_s64(count);
  const auto shifted = [by](uint8x16_t x) {
    return vreinterpretq_u8_u64(vshlq_u64(vreinterpretq_u64_u8(x), by));
  };
  return halves8(shifted, a);
}

[[gnu::always_inline]] inline Register negative8(Register a) {
  const auto signs = [](uint8x16_t x) {
    return vreinterpretq_u8_s8(vshrq_n_s8(vreinterpretq_s8_u8(x), 7));
  };
  return halves8(signs, a);
}
[[gnu::always_inline]] inline Register choose8(Register a, Register b, Register which) {
  return halves8([](auto x, auto y, auto mask) { return vbslq_u8(mask, y, x); }, a, b,
                 negative8(which));
}

[[gnu::always_inline]] inline Register table_entries(Register table, Register index) {
  return halves8([](auto t, auto i) { return vqtbl1q_u8(t, i); }, table, index);
}
[[gnu::always_inline]] inline Register table_index(Register fields) { return fields & all8(15); }
// Indexes above fifteen give zero.
[[gnu::always_inline]] inline Register table_index(Register fields, Index j) {
  return fields ^ all8(static_cast<int>(16 * j));
}

[[gnu::always_inline]] inline Register interleave_low8(Register a, Register b) {
  return halves8([](auto x, auto y) { return vzip1q_u8(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register interleave_high8(Register a, Register b) {
  return halves8([](auto x, auto y) { return vzip2q_u8(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register interleave_low16(Register a, Register b) {
  return halves16([](auto x, auto y) { return vzip1q_u16(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register interleave_high16(Register a, Register b) {
  return halves16([](auto x, auto y) { return vzip2q_u16(x, y); }, a, b);
}

[[gnu::always_inline]] inline Register multiply_rounded16(Register a, Register b) {
  return halves_signed16([](auto x, auto y) { return vqrdmulhq_s16(x, y); }, a, b);
}
[[gnu::always_inline]] inline Register pair_sums8(Register a, Register b) {
  const auto sums = [](uint8x16_t x, uint8x16_t y) {
    const uint16x8_t weights = vreinterpretq_u16_u8(x);
    const int16x8_t values = vreinterpretq_s16_u8(y);
    const auto even = vreinterpretq_s16_u16(vandq_u16(weights, vdupq_n_u16(255)));
    const auto odd = vreinterpretq_s16_u16(vshrq_n_u16(weights, 8));
    const int16x8_t even_values = vshrq_n_s16(vshlq_n_s16(values, 8), 8);
    return vreinterpretq_u8_s16(
        vmlaq_s16(vmulq_s16(even, even_values), odd, vshrq_n_s16(values, 8)));
  };
  return halves8(sums, a, b);
}
[[gnu::always_inline]] inline Register pair_sums16(Register a, Register b) {
  const auto sums = [](uint8x16_t x, uint8x16_t y) {
    const int16x8_t left = vreinterpretq_s16_u8(x), right = vreinterpretq_s16_u8(y);
    const int32x4_t low = vmull_s16(vget_low_s16(left), vget_low_s16(right));
    return vreinterpretq_u8_s32(vpaddq_s32(low, vmull_high_s16(left, right)));
  };
  return halves8(sums, a, b);
}
[[gnu::always_inline]] inline Register odd_words(Register a) {
  return halves_signed32([](auto x) { return vshrq_n_s32(x, 16); }, a);
}
[[gnu::always_inline]] inline Register even_words(Register a) {
  return halves_signed32([](auto x) { return vshrq_n_s32(vshlq_n_s32(x, 16), 16); }, a);
}

[[gnu::always_inline]] inline Floats all_floats(float value) {
  const float32x4_t four = vdupq_n_f32(value);
  return {{four, four}};
}
[[gnu::always_inline]] inline Floats load_floats(const float* place) {
  return {{vld1q_f32(place), vld1q_f32(place + 4)}};
}
[[gnu::always_inline]] inline void store_floats(float* place, Floats values) {
  vst1q_f32(place, values.half[0]);
  vst1q_f32(place + 4, values.half[1]);
}
[[gnu::always_inline]] inline Floats as_floats(Register bits) {
  return {{vreinterpretq_f32_u8(bits.half[0]), vreinterpretq_f32_u8(bits.half[1])}};
}
[[gnu::always_inline]] inline Register as_bytes(Floats values) {
  return {{vreinterpretq_u8_f32(values.half[0]), vreinterpretq_u8_f32(values.half[1])}};
}
[[gnu::always_inline]] inline Floats to_float(Register a) {
  return {{vcvtq_f32_s32(vreinterpretq_s32_u8(a.half[0])),
           vcvtq_f32_s32(vreinterpretq_s32_u8(a.half[1]))}};
}
[[gnu::always_inline]] inline Register to_nearest(Floats a) {
  return {{vreinterpretq_u8_s32(vcvtnq_s32_f32(a.half[0])),
           vreinterpretq_u8_s32(vcvtnq_s32_f32(a.half[1]))}};
}
[[gnu::always_inline]] inline Floats operator+(Floats a, Floats b) {
  return halves_float([](auto x, auto y) { return vaddq_f32(x, y); }, a, b);
}
[[gnu::always_inline]] inline Floats operator*(Floats a, Floats b) {
  return halves_float([](auto x, auto y) { return vmulq_f32(x, y); }, a, b);
}
[[gnu::always_inline]] inline Floats operator-(Floats a) {
  return halves_float([](auto x) { return vnegq_f32(x); }, a);
}
[[gnu::always_inline]] inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return halves_float([](auto x, auto y, auto z) { return vfmaq_f32(z, x, y); }, a, b, c);
}
[[gnu::always_inline]] inline Floats subtract_product(Floats a, Floats b, Floats c) {
  return halves_float([](auto x, auto y, auto z) { return vfmsq_f32(z, x, y); }, a, b, c);
}

template <int kPlanes>
[[gnu::always_inline]] inline void split_bytes(const Register (&numbers)[2], std::uint8_t* planes) {
  std::uint8_t sixteen[64];
  store_bytes(sixteen, numbers[0]);
  store_bytes(sixteen + 32, numbers[1]);
  const uint8x16x4_t all = vld4q_u8(sixteen);
  for (int plane = 0; plane < kPlanes; ++plane) vst1q_u8(planes + 16 * plane, all.val[plane]);
}

[[gnu::always_inline]] inline void split_pairs(Floats a, Floats b, Floats& even, Floats& odd) {
  even = {{vuzp1q_f32(a.half[0], a.half[1]), vuzp1q_f32(b.half[0], b.half[1])}};
  odd = {{vuzp2q_f32(a.half[0], a.half[1]), vuzp2q_f32(b.half[0], b.half[1])}};
}

[[gnu::always_inline]] inline Floats load_pairs(const float* pairs, const std::uint16_t* index) {
  const auto pair = [&](Index i) { return vld1_f32(pairs + 2 * index[i]); };
  return {{vcombine_f32(pair(0), pair(1)), vcombine_f32(pair(2), pair(3))}};
}

[[gnu::always_inline]] inline void store_widened8(std::uint16_t* place, Register a) {
  for (int half = 0; half < 2; ++half) {
    vst1q_u16(place + 16 * half, vmovl_u8(vget_low_u8(a.half[half])));
    vst1q_u16(place + 16 * half + 8, vmovl_high_u8(a.half[half]));
  }
}

}  // namespace llava_fa::cpu

// The DFT of one sequence by one thread block. Twin of ../cpu/fft.cpp.
//
// 1. Stockham passes, between two buffers: radices 8, 4, 2, 3, 5 in registers, other primes as
//    dense DFTs whose outputs are computed one by one.
// 2. A length with a large prime factor N becomes, by j k = (j^2 + k^2 - (k - j)^2) / 2, a circular
//    convolution of a longer length that has none (Bluestein), with c_j = exp(-pi i j^2 / N):
//    multiply by c, transform, multiply by the transform of 1/c, transform back, multiply by c.
#pragma once

#include <cstdint>

#include "complex.hpp"
#include "fft_plan.hpp"

namespace llava_fa::cuda {

// In place, unnormalized: values[q] = sum_r values[r] exp(-2 pi i q r / radix).
template <int radix>
LLAVA_FA_SHARED void small_dft(Complex (&values)[radix]);

template <>
LLAVA_FA_SHARED void small_dft<2>(Complex (&v)[2]) {
  const Complex sum = v[0] + v[1];
  v[1] = v[0] - v[1];
  v[0] = sum;
}

template <>
LLAVA_FA_SHARED void small_dft<3>(Complex (&v)[3]) {
  constexpr float kSin = 0.86602540378443864676f;  // sin(2 pi / 3)
  const Complex sum = v[1] + v[2], turned = kSin * times_minus_i(v[1] - v[2]);
  const Complex middle = v[0] - 0.5f * sum;
  v[0] = v[0] + sum;
  v[1] = middle + turned;
  v[2] = middle - turned;
}

template <>
LLAVA_FA_SHARED void small_dft<4>(Complex (&v)[4]) {
  const Complex even = v[0] + v[2], even_difference = v[0] - v[2];
  const Complex odd = v[1] + v[3], odd_difference = times_minus_i(v[1] - v[3]);
  v[0] = even + odd;
  v[1] = even_difference + odd_difference;
  v[2] = even - odd;
  v[3] = even_difference - odd_difference;
}

template <>
LLAVA_FA_SHARED void small_dft<5>(Complex (&v)[5]) {
  constexpr float kCos1 = 0.30901699437494742410f, kSin1 = 0.95105651629515357212f;   // 2 pi / 5
  constexpr float kCos2 = -0.80901699437494742410f, kSin2 = 0.58778525229247312917f;  // 4 pi / 5
  const Complex outer = v[1] + v[4], outer_difference = times_minus_i(v[1] - v[4]);
  const Complex inner = v[2] + v[3], inner_difference = times_minus_i(v[2] - v[3]);
  const Complex first = v[0] + kCos1 * outer + kCos2 * inner;
  const Complex second = v[0] + kCos2 * outer + kCos1 * inner;
  const Complex first_turned = kSin1 * outer_difference + kSin2 * inner_difference;
  const Complex second_turned = kSin2 * outer_difference - kSin1 * inner_difference;
  v[0] = v[0] + outer + inner;
  v[1] = first + first_turned;
  v[2] = second + second_turned;
  v[3] = second - second_turned;
  v[4] = first - first_turned;
}

template <>
LLAVA_FA_SHARED void small_dft<8>(Complex (&v)[8]) {
  constexpr float kHalfSqrt = 0.70710678118654752440f;
  Complex even[4] = {v[0], v[2], v[4], v[6]}, odd[4] = {v[1], v[3], v[5], v[7]};
  small_dft<4>(even);
  small_dft<4>(odd);
  odd[1] = kHalfSqrt * (odd[1] + times_minus_i(odd[1]));
  odd[2] = times_minus_i(odd[2]);
  odd[3] = kHalfSqrt * (times_minus_i(odd[3]) - odd[3]);
  LLAVA_FA_UNROLL
  for (int q = 0; q < 4; ++q) {
    v[q] = even[q] + odd[q];
    v[q + 4] = even[q] - odd[q];
  }
}

// Butterfly i of a pass over sequences of `done` elements each: element k = i mod done of `radix`
// sequences becomes elements k, k + done, ... of one that is `radix` times as long.
template <int radix>
LLAVA_FA_SHARED void butterfly(const FftPlan& plan, int done, int i, const Complex* from,
                               Complex* to) {
  const int count = plan.length / radix, k = i % done;
  const int turn = k * (count / done);  // of plan.length
  Complex values[radix];
  LLAVA_FA_UNROLL
  for (int r = 0; r < radix; ++r) {
    values[r] = from[i + r * count];
    if (r > 0) values[r] = plan.roots[r * turn] * values[r];
  }
  small_dft<radix>(values);
  LLAVA_FA_UNROLL
  for (int q = 0; q < radix; ++q) to[(i - k) * radix + k + q * done] = values[q];
}

// Output o of a pass of any radix: the same, with the turns before the DFT and in it taken
// together.
LLAVA_FA_SHARED void dense_output(const FftPlan& plan, int radix, int done, int o,
                                  const Complex* from, Complex* to) {
  const int count = plan.length / radix, longer = done * radix;
  const int place = o % longer, i = o / longer * done + place % done;
  const int turn = place * (count / done);
  Complex sum = from[i];
  int t = 0;
  for (int r = 1; r < radix; ++r) {
    t += turn;
    if (t >= plan.length) t -= plan.length;
    add_product(plan.roots[t], from[i + r * count], sum);
  }
  to[o] = sum;
}

template <int radix, class Block>
LLAVA_FA_KERNEL void pass(Block& block, const FftPlan& plan, int done, const Complex* from,
                          Complex* to) {
  block.phase([&](int thread) {
    for (int i = thread; i < plan.length / radix; i += Block::kThreads) {
      butterfly<radix>(plan, done, i, from, to);
    }
  });
}

// All passes of plan.length elements; returns which of the two buffers holds the result.
template <class Block>
LLAVA_FA_KERNEL Complex* run_passes(Block& block, const FftPlan& plan, Complex* from, Complex* to) {
  int done = 1;
  for (int p = 0; p < plan.pass_count; ++p) {
    const int radix = plan.radix[p];
    switch (radix) {
      case 2: pass<2>(block, plan, done, from, to); break;
      case 3: pass<3>(block, plan, done, from, to); break;
      case 4: pass<4>(block, plan, done, from, to); break;
      case 5: pass<5>(block, plan, done, from, to); break;
      case 8: pass<8>(block, plan, done, from, to); break;
      default:
        block.phase([&](int thread) {
          for (int o = thread; o < plan.length; o += Block::kThreads) {
            dense_output(plan, radix, done, o, from, to);
          }
        });
    }
    done *= radix;
    Complex* const written = to;
    to = from;
    from = written;
  }
  return from;
}

// Unnormalized DFT of the first plan.sequence elements of `from`; both buffers have room for
// plan.length. Returns which of them holds the result.
template <class Block>
LLAVA_FA_KERNEL Complex* transform(Block& block, const FftPlan& plan, Complex* from, Complex* to) {
  if (plan.chirp == nullptr) return run_passes(block, plan, from, to);
  block.phase([&](int thread) {
    for (int j = thread; j < plan.length; j += Block::kThreads) {
      from[j] = j < plan.sequence ? plan.chirp[j] * from[j] : Complex{0, 0};
    }
  });
  Complex* const spectrum = run_passes(block, plan, from, to);
  // The inverse transform is that of conjugates, conjugated.
  block.phase([&](int thread) {
    for (int j = thread; j < plan.length; j += Block::kThreads) {
      spectrum[j] = conjugate(plan.chirp_spectrum[j] * spectrum[j]);
    }
  });
  Complex* const result = run_passes(block, plan, spectrum, spectrum == from ? to : from);
  block.phase([&](int thread) {
    for (int j = thread; j < plan.sequence; j += Block::kThreads) {
      result[j] = plan.chirp[j] * conjugate(result[j]);
    }
  });
  return result;
}

}  // namespace llava_fa::cuda

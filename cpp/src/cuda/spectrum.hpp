// Activations to their spectra and results back: unitary real DFTs of one vector per block, with
// the channel multipliers. Twin of ../cpu/spectrum.cpp.
#pragma once

#include "fft.hpp"
#include "number_types.hpp"
#include "trellis.hpp"

namespace llava_fa::cuda {

// Where transforms keep their two buffers: in shared memory, or, where these are too long for it,
// in the workspace, a pair for each block.
struct FftBuffers {
  Complex* workspace;  // null: shared memory
  Index elements;      // of each buffer

  template <class Block>
  LLAVA_FA_KERNEL Complex* first(const Block& block) const {
    if (workspace == nullptr) return block.template shared<Complex>();
    return workspace + block.index(0) * 2 * elements;
  }
};

// Entry l <= n / 2 of the unitary DFT of real values, from that of the sequence which they make:
// neighbours as parts of n / 2 complex numbers if n is even, else with imaginary parts of zero.
//
// Even n: X_l = (Z_l + conj Z_-l) / 2 - i exp(-2 pi i l / n) (Z_l - conj Z_-l) / 2.
LLAVA_FA_SHARED Complex entry_of_real(const RealFftPlan& plan, const Complex* z, Index l) {
  if (plan.n % 2 == 1) return plan.unitary * z[l];
  const Index half = plan.complex.sequence;
  const Complex here = z[l == half ? 0 : l], mirror = conjugate(z[l == 0 ? 0 : half - l]);
  const Complex turned = plan.turns[l] * times_minus_i(here - mirror);
  return 0.5f * plan.unitary * (here + mirror + turned);
}

// x̃ = conj(F x̄) of all n columns, x̄ the activation times the input multipliers.
//
// 1. Values to a complex sequence (entry_of_real).
// 2. Its DFT.
// 3. Entries, and their conjugates for the mirror images.
struct SpectrumKernel {
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  RealFftPlan plan;
  FftBuffers buffers;
  const void* activations;  // (tokens, n), rows row_stride elements apart
  ElementType type;
  Index row_stride;
  const float* multiplier;  // (n)
  Complex* spectrum;        // (tokens, pitch)
  Index pitch;              // n rounded up to whole groups, zero from n on
  Index tokens;
  bool trellis;  // columns in its order

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    for (Index token = block.index(0); token < tokens; token += block.count(0)) {
      Complex* const buffer = buffers.first(block);
      block.phase([&](int thread) {
        for (int j = thread; j < plan.complex.sequence; j += kThreads) buffer[j] = load(token, j);
      });
      const Complex* z = transform(block, plan.complex, buffer, buffer + buffers.elements);
      block.phase([&](int thread) { store(token, thread, z); });
    }
  }

 private:
  LLAVA_FA_KERNEL float channel(Index token, Index j) const {
    return multiplier[j] * load_number(activations, type, token * row_stride + j);
  }

  LLAVA_FA_KERNEL Complex load(Index token, Index j) const {
    if (plan.n % 2 == 1) return {channel(token, j), 0.0f};
    return {channel(token, 2 * j), channel(token, 2 * j + 1)};
  }

  LLAVA_FA_KERNEL void store(Index token, int thread, const Complex* z) const {
    Complex* const out = spectrum + token * pitch;
    const Index n = plan.n;
    for (int l = thread; l <= n / 2; l += kThreads) {
      const Complex value = entry_of_real(plan, z, l);
      out[place_of(trellis, n, l)] = conjugate(value);
      if (l > 0 && 2 * l != n) out[place_of(trellis, n, n - l)] = value;
    }
    for (Index l = n + thread; l < pitch; l += kThreads) out[l] = {0, 0};
  }
};

// Entry k of the complex sequence whose inverse DFT makes real values, from their half spectrum.
LLAVA_FA_SHARED Complex entry_of_complex(const RealFftPlan& plan, const Complex* half, int k) {
  if (plan.n % 2 == 1) return 2 * k < plan.n ? half[k] : conjugate(half[plan.n - k]);
  const Complex here = half[k], mirror = conjugate(half[plan.complex.sequence - k]);
  const Complex turned = conjugate(plan.turns[k]) * (here - mirror);
  return here + mirror - times_minus_i(turned);
}

// The m = plan.n real values of a half spectrum with Parseval weights, whose entry k is entry(k),
// by a whole block: put(i, value) gets each value i, not yet divided by sqrt(m).
//
// 1. Parseval weights are divided out, and imaginary parts dropped where a row is its own mirror.
// 2. Even m: Z_k = (Y_k + conj Y_-k) + i exp(2 pi i k / m) (Y_k - conj Y_-k), k < m / 2; odd m: all
//    rows from their mirrors.
// 3. The inverse DFT is that of conjugates, conjugated; even m: its parts are neighbours.
template <class Block, class Entry, class Put>
LLAVA_FA_KERNEL void inverse_transform(Block& block, const RealFftPlan& plan,
                                       const FftBuffers& buffers, Entry entry, Put put) {
  Complex* const buffer = buffers.first(block);
  Complex* const half = buffer + buffers.elements;
  block.phase([&](int thread) {
    for (Index k = thread; k <= plan.n / 2; k += Block::kThreads) {
      const Complex value = entry(k);
      const bool own_mirror = k == 0 || 2 * k == plan.n;
      half[k] = own_mirror ? Complex{value.real, 0} : 0.70710678118654752440f * value;
    }
  });
  block.phase([&](int thread) {
    for (int k = thread; k < plan.complex.sequence; k += Block::kThreads) {
      buffer[k] = conjugate(entry_of_complex(plan, half, k));
    }
  });
  const Complex* z = transform(block, plan.complex, buffer, half);
  block.phase([&](int thread) {
    for (Index j = thread; j < plan.complex.sequence; j += Block::kThreads) {
      if (plan.n % 2 == 1) {
        put(j, z[j].real);
      } else {
        put(2 * j, z[j].real);
        put(2 * j + 1, -z[j].imag);
      }
    }
  });
}

// The result in the basis of the output channels: sums of parts, in order, to a half spectrum, and
// its inverse DFT, times the output multipliers, rounded to the output's type.
struct InverseSpectrumKernel {
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  RealFftPlan plan;
  FftBuffers buffers;
  const float* parts;  // (part_count, tokens, 2, m / 2 + 1)
  Index part_count;
  Index tokens;
  const float* multiplier;  // (m)
  void* output;             // (tokens, m)
  ElementType type;

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    for (Index token = block.index(0); token < tokens; token += block.count(0)) {
      inverse_transform(
          block, plan, buffers, [&](Index k) { return row(token, k); },
          [&](Index i, float value) {
            store_number(plan.unitary * multiplier[i] * value, type, token * plan.n + i, output);
          });
    }
  }

 private:
  LLAVA_FA_KERNEL Complex row(Index token, Index k) const {
    const Index rows = plan.n / 2 + 1;
    Complex sum = {0, 0};
    for (Index part = 0; part < part_count; ++part) {
      const float* line = parts + (part * tokens + token) * 2 * rows;
      sum = sum + Complex{line[k], line[rows + k]};
    }
    return sum;
  }
};

}  // namespace llava_fa::cuda

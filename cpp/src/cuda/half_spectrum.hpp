// A weight to its half spectrum: real DFTs of the columns, of which the kept rows stay, then
// complex DFTs of the rows; and back. Twin of ../cpu/spectrum.cpp.
#pragma once

#include "scaled_weight.hpp"
#include "spectrum.hpp"

namespace llava_fa::cuda {

// spectrum[k, j] = Parseval weight of k times entry k of the unitary DFT of column j.
struct ColumnSpectra {
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  RealFftPlan plan;  // of weight.rows
  FftBuffers buffers;
  ScaledWeight weight;
  Complex* spectrum;  // (rows / 2 + 1, cols)

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    for (Index column = block.index(0); column < weight.cols; column += block.count(0)) {
      Complex* const buffer = buffers.first(block);
      block.phase([&](int thread) {
        for (int i = thread; i < plan.complex.sequence; i += kThreads) buffer[i] = load(i, column);
      });
      const Complex* z = transform(block, plan.complex, buffer, buffer + buffers.elements);
      block.phase([&](int thread) {
        for (Index k = thread; k <= plan.n / 2; k += kThreads) {
          const bool own_mirror = k == 0 || 2 * k == plan.n;
          const float parseval = own_mirror ? 1.0f : 1.41421356237309504880f;
          spectrum[k * weight.cols + column] = parseval * entry_of_real(plan, z, k);
        }
      });
    }
  }

 private:
  LLAVA_FA_KERNEL Complex load(Index i, Index column) const {
    if (plan.n % 2 == 1) return {weight.at(i, column), 0.0f};
    return {weight.at(2 * i, column), weight.at(2 * i + 1, column)};
  }
};

// The unitary DFT of every row, or its inverse, which is that of conjugates, conjugated.
struct RowSpectra {
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  FftPlan plan;  // of the columns
  FftBuffers buffers;
  const Complex* from;  // (rows, plan.sequence)
  Complex* to;          // likewise; may be `from`
  Index rows;
  float unitary;  // 1 / sqrt(plan.sequence)
  bool inverse;

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    for (Index row = block.index(0); row < rows; row += block.count(0)) {
      Complex* const buffer = buffers.first(block);
      const Index first = row * plan.sequence;
      block.phase([&](int thread) {
        for (int j = thread; j < plan.sequence; j += kThreads) {
          buffer[j] = inverse ? conjugate(from[first + j]) : from[first + j];
        }
      });
      const Complex* z = transform(block, plan, buffer, buffer + buffers.elements);
      block.phase([&](int thread) {
        for (int l = thread; l < plan.sequence; l += kThreads) {
          to[first + l] = unitary * (inverse ? conjugate(z[l]) : z[l]);
        }
      });
    }
  }
};

// Inverse of ColumnSpectra, times the multipliers.
struct InverseColumnSpectra {
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  RealFftPlan plan;  // of the weight's rows
  FftBuffers buffers;
  const Complex* spectrum;  // (plan.n / 2 + 1, cols)
  Index cols;
  const float* row_multiplier;  // (plan.n)
  const float* col_multiplier;  // (cols)
  float* weight;                // (plan.n, cols)

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    for (Index column = block.index(0); column < cols; column += block.count(0)) {
      const float factor = plan.unitary * col_multiplier[column];
      inverse_transform(
          block, plan, buffers, [&](Index k) { return spectrum[k * cols + column]; },
          [&](Index i, float value) {
            weight[i * cols + column] = factor * row_multiplier[i] * value;
          });
    }
  }
};

}  // namespace llava_fa::cuda

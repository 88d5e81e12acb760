// A dense weight in kernels, times multipliers of its channels, and the channels' energies. Twin of
// channel_energies in ../cpu/elementwise.cpp.
#pragma once

#include "number_types.hpp"
#include "reduction.hpp"

namespace llava_fa::cuda {

struct ScaledWeight {
  const void* values;  // (rows, cols), rows row_stride elements apart
  ElementType type;
  Index rows;
  Index cols;
  Index row_stride;
  const float* row_multiplier;  // (rows)
  const float* col_multiplier;  // (cols)

  LLAVA_FA_SHARED float at(Index i, Index j) const {
    return load_number(values, type, i * row_stride + j) * row_multiplier[i] * col_multiplier[j];
  }

  // The square of an entry, which no float32 overflows.
  LLAVA_FA_SHARED double energy(Index i, Index j) const {
    const double value = static_cast<double>(row_multiplier[i]) * col_multiplier[j] *
                         load_number(values, type, i * row_stride + j);
    return value * value;
  }
};

// Sums of squares of the rows. Grid (rows).
struct RowEnergies {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  ScaledWeight weight;
  double* energies;  // (rows)

  static constexpr Index shared_bytes() { return kThreads * 8; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0);
    double* const sums = block.template shared<double>();
    block.phase([&](int thread) {
      double sum = 0;
      for (Index j = thread; j < weight.cols; j += kThreads) sum += weight.energy(row, j);
      sums[thread] = sum;
    });
    join_all(block, sums, [](double a, double b) { return a + b; });
    block.phase([&](int thread) {
      if (thread == 0) energies[row] = sums[0];
    });
  }
};

// Sums of squares of the columns. Grid (tiles of kColumns); neighbouring threads have neighbouring
// columns, and the rows are dealt out over the rest.
struct ColumnEnergies {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static constexpr int kColumns = 32;

  ScaledWeight weight;
  double* energies;  // (cols)

  static constexpr Index shared_bytes() { return kThreads * 8; }
  Index blocks() const { return (weight.cols + kColumns - 1) / kColumns; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index first = block.index(0) * kColumns;
    double* const sums = block.template shared<double>();
    block.phase([&](int thread) {
      const Index j = first + thread % kColumns;
      double sum = 0;
      if (j < weight.cols) {
        for (Index i = thread / kColumns; i < weight.rows; i += kThreads / kColumns) {
          sum += weight.energy(i, j);
        }
      }
      sums[thread] = sum;
    });
    block.phase([&](int thread) {
      if (thread >= kColumns || first + thread >= weight.cols) return;
      double sum = 0;
      for (int share = thread; share < kThreads; share += kColumns) sum += sums[share];
      energies[first + thread] = sum;
    });
  }
};

}  // namespace llava_fa::cuda

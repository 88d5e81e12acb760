// The low-rank part of the product, y += L1 (L2 x̃), in float32 with decoded factors. Twin of
// subtract_low_rank in ../cpu/linalg.cpp.
#pragma once

#include "complex.hpp"
#include "host_device.hpp"
#include "llava_fa/types.hpp"
#include "reduction.hpp"

namespace llava_fa::cuda {

// inner[token, c] = sum_l right[c, l] x̃[token, l], columns l in any order, the same of both. Grid
// (rank, tokens).
struct LowRankInner {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;

  const Complex* right;  // (rank, n)
  Index n;
  const Complex* spectrum;  // (tokens, pitch)
  Index pitch;
  Complex* inner;  // (tokens, rank)

  static constexpr Index shared_bytes() { return kThreads * 8; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Complex* row = right + block.index(0) * n;
    const Complex* x = spectrum + block.index(1) * pitch;
    Complex* const sums = block.template shared<Complex>();
    block.phase([&](int thread) {
      Complex sum = {0, 0};
      for (Index l = thread; l < n; l += kThreads) add_product(row[l], x[l], sum);
      sums[thread] = sum;
    });
    join_all(block, sums, [](Complex a, Complex b) { return a + b; });
    block.phase([&](int thread) {
      if (thread == 0) inner[block.index(1) * block.count(0) + block.index(0)] = sums[0];
    });
  }
};

// A further part of the result: part[token, :, k] = sum_c left[c, k] inner[token, c]. Grid (row
// blocks, tokens).
struct LowRankOuter {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;

  const Complex* left;  // (rank, rows)
  Index rank;
  Index rows;
  const Complex* inner;  // (tokens, rank)
  float* part;           // (tokens, 2, rows)

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    block.phase([&](int thread) {
      const Index k = block.index(0) * kThreads + thread, token = block.index(1);
      if (k >= rows) return;
      Complex sum = {0, 0};
      for (Index c = 0; c < rank; ++c) {
        add_product(left[c * rows + k], inner[token * rank + c], sum);
      }
      part[2 * token * rows + k] = sum.real;
      part[(2 * token + 1) * rows + k] = sum.imag;
    });
  }
};

}  // namespace llava_fa::cuda

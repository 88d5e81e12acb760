// Passes over the entries of a half spectrum. Twin of ../cpu/elementwise.cpp.
#pragma once

#include <cstdint>

#include "complex.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa::cuda {

// out = (from - diag(row_scale) points) diag(column_factor); `out` may be `from`. Grid (rows).
struct SubtractCodes {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  const Complex* from;          // (rows, cols)
  const std::uint16_t* points;  // (rows, cols), or null: no codes
  const float* row_scale;       // (rows)
  const Complex* table;         // what points stand for
  const float* column_factor;   // (cols), or null: ones
  Index cols;
  Complex* out;  // (rows, cols)

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index first = block.index(0) * cols;
    block.phase([&](int thread) {
      for (Index l = thread; l < cols; l += kThreads) {
        Complex value = from[first + l];
        if (points != nullptr) {
          value = value - row_scale[block.index(0)] * table[points[first + l]];
        }
        out[first + l] = column_factor == nullptr ? value : column_factor[l] * value;
      }
    });
  }
};

}  // namespace llava_fa::cuda

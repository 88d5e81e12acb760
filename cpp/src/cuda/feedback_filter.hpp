// The factor R = M diag(D)^1/2 of an input's second moment on a device, and rows times R. Twin of
// apply_filter in ../cpu/feedback.cpp.
#pragma once

#include <cmath>

#include "arena.hpp"
#include "llava_fa/feedback.hpp"
#include "product_tile.hpp"

namespace llava_fa::cuda {

inline constexpr int kFilterBlock = static_cast<int>(FeedbackFilter::kBlock);

// A block of the filter's columns on a device.
struct FilterBlock {
  const float* coefficients;  // (first + width, 2 width), M as FeedbackFilter has it
  const float* diagonal;      // (cols), of all columns
  Index first;
  int width;

  LLAVA_FA_SHARED Complex at(Index i, int c) const {
    const float* const row = coefficients + i * 2 * width;
    return {row[c], row[width + c]};
  }
};

// rows = rows R in the block's columns, in place: they take from themselves and those before, so
// the blocks come from the last one to the first. Grid (tiles of rows).
struct ApplyFilter {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  Complex* values;  // (rows, cols)
  Index rows;
  Index cols;
  FilterBlock filter;

  static constexpr Index shared_bytes() { return ProductTile::shared_bytes(); }
  Index tiles() const { return ceil_div(rows, ProductTile::kRows); }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index first_row = block.index(0) * ProductTile::kRows;
    const Index inner = filter.first + filter.width;
    ProductTile::multiply<Walk::along_rows>(
        block, inner,
        [&](int r, Index i) {
          const Index row = first_row + r;
          return row < rows && i < inner ? values[row * cols + i] : Complex{0, 0};
        },
        [&](Index i, int c) {
          return i < inner && c < filter.width ? filter.at(i, c) : Complex{0, 0};
        },
        [&](int r, int c, Complex sum) {
          const Index row = first_row + r, j = filter.first + c;
          if (row >= rows || c >= filter.width) return;
          Complex& value = values[row * cols + j];
          value = std::sqrt(filter.diagonal[j]) * (value + sum);
        });
  }
};

}  // namespace llava_fa::cuda

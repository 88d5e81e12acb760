// Products of complex matrices with thin ones, row by row in memory, in float32. Twin of
// ../cpu/linalg.cpp.
#pragma once

#include "arena.hpp"
#include "product_tile.hpp"

namespace llava_fa::cuda {

// Entry (i, j) of a matrix (rows, cols), rows pitch entries apart; zero outside.
struct BoundedMatrix {
  const Complex* entries;
  Index rows;
  Index cols;
  Index pitch = cols;

  LLAVA_FA_SHARED Complex at(Index i, Index j) const {
    return i < rows && j < cols ? entries[i * pitch + j] : Complex{0, 0};
  }
};

// Grid of tiles of a result (rows, cols).
struct ProductGrid {
  Index rows;
  Index cols;

  Index x() const { return ceil_div(rows, ProductTile::kRows); }
  Index y() const { return ceil_div(cols, ProductTile::kColumns); }
};

// out = left right. Of up to ProductTile::kColumns columns, `out` may be `left`.
struct Multiply {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  BoundedMatrix left;
  BoundedMatrix right;
  Complex* out;  // (left.rows, right.cols)
  Index out_pitch = right.cols;

  ProductGrid grid() const { return {left.rows, right.cols}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0) * ProductTile::kRows;
    const Index column = block.index(1) * ProductTile::kColumns;
    ProductTile::multiply<Walk::along_rows>(
        block, left.cols, [&](int r, Index i) { return left.at(row + r, i); },
        [&](Index i, int c) { return right.at(i, column + c); },
        [&](int r, int c, Complex sum) {
          if (row + r >= left.rows || column + c >= right.cols) return;
          out[(row + r) * out_pitch + column + c] = sum;
        });
  }
};

// out = leftᴴ right.
struct MultiplyAdjoint {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  BoundedMatrix left;
  BoundedMatrix right;
  Complex* out;  // (left.cols, right.cols)

  ProductGrid grid() const { return {left.cols, right.cols}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0) * ProductTile::kRows;
    const Index column = block.index(1) * ProductTile::kColumns;
    ProductTile::multiply<Walk::down_columns>(
        block, left.rows, [&](int r, Index i) { return conjugate(left.at(i, row + r)); },
        [&](Index i, int c) { return right.at(i, column + c); },
        [&](int r, int c, Complex sum) {
          if (row + r >= left.cols || column + c >= right.cols) return;
          out[(row + r) * right.cols + column + c] = sum;
        });
  }
};

// out = from - leftᵀ right; `out` may be `from`.
struct SubtractLowRank {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  const Complex* from;
  BoundedMatrix left;   // (rank, rows)
  BoundedMatrix right;  // (rank, cols)
  Complex* out;

  ProductGrid grid() const { return {left.cols, right.cols}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0) * ProductTile::kRows;
    const Index column = block.index(1) * ProductTile::kColumns;
    ProductTile::multiply<Walk::down_columns>(
        block, left.rows, [&](int r, Index i) { return left.at(i, row + r); },
        [&](Index i, int c) { return right.at(i, column + c); },
        [&](int r, int c, Complex sum) {
          if (row + r >= left.cols || column + c >= right.cols) return;
          const Index place = (row + r) * right.cols + column + c;
          out[place] = from[place] - sum;
        });
  }
};

}  // namespace llava_fa::cuda

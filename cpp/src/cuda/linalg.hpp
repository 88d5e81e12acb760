// Products of complex matrices with thin ones, row by row in memory, in float32. Twin of
// ../cpu/linalg.cpp.
#pragma once

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

// out = left right. Of up to ProductTile::kColumns columns, `out` may be `left`.
struct Multiply {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  BoundedMatrix left;
  BoundedMatrix right;
  Complex* out;  // (left.rows, right.cols)
  Index out_pitch = right.cols;

  LLAVA_FA_SHARED ProductGrid grid() const { return {left.rows, right.cols}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    grid().multiply<Walk::along_rows>(
        block, left.cols, [&](Index i, Index k) { return left.at(i, k); },
        [&](Index k, Index j) { return right.at(k, j); },
        [&](Index i, Index j, Complex sum) { out[i * out_pitch + j] = sum; });
  }
};

// out = leftᴴ right.
struct MultiplyAdjoint {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  BoundedMatrix left;
  BoundedMatrix right;
  Complex* out;  // (left.cols, right.cols)

  LLAVA_FA_SHARED ProductGrid grid() const { return {left.cols, right.cols}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    grid().multiply<Walk::down_columns>(
        block, left.rows, [&](Index i, Index k) { return conjugate(left.at(k, i)); },
        [&](Index k, Index j) { return right.at(k, j); },
        [&](Index i, Index j, Complex sum) { out[i * right.cols + j] = sum; });
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

  LLAVA_FA_SHARED ProductGrid grid() const { return {left.cols, right.cols}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    grid().multiply<Walk::down_columns>(
        block, left.rows, [&](Index i, Index k) { return left.at(k, i); },
        [&](Index k, Index j) { return right.at(k, j); },
        [&](Index i, Index j, Complex sum) {
          const Index place = i * right.cols + j;
          out[place] = from[place] - sum;
        });
  }
};

}  // namespace llava_fa::cuda

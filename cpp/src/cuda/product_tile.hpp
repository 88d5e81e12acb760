// A tile of a product of complex matrices in float32, by all threads of a block; where operands
// come from and where results go is the caller's.
#pragma once

#include "complex.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa::cuda {

// How neighbouring threads walk through an operand: along its rows or down its columns, whichever
// is contiguous.
enum class Walk { along_rows, down_columns };

// A thread has 2 rows of 4 columns.
struct ProductTile {
  static constexpr int kThreads = 256;
  static constexpr int kRows = 32;
  static constexpr int kColumns = 64;
  static constexpr int kStep = 16;

  static constexpr Index shared_bytes() {
    return (kRows * kPitch + kStep * kColumnPitch) * Index{sizeof(Complex)};
  }

  // put(r, c, sum over i < inner of left(r, i) right(i, c)) for r < kRows, c < kColumns; operands
  // are asked for all i below inner rounded up to kStep, and are zero where there is nothing. When
  // the first is put, all have been read.
  template <Walk of_left, Walk of_right = Walk::along_rows, class Block, class Left, class Right,
            class Put>
  LLAVA_FA_KERNEL static void multiply(Block& block, Index inner, Left left, Right right, Put put) {
    Complex* const x = block.template shared<Complex>();
    Complex* const y = x + kRows * kPitch;
    typename Block::template PerThread<Sums> sums;
    block.start([&](int thread) { sums[thread] = {}; });
    for (Index i = 0; i < inner; i += kStep) {
      block.phase([&](int thread) {
        for (int e = thread; e < kRows * kStep; e += kThreads) {
          const int r = of_left == Walk::along_rows ? e / kStep : e % kRows;
          const int step = of_left == Walk::along_rows ? e % kStep : e / kRows;
          x[r * kPitch + step] = left(r, i + step);
        }
        for (int e = thread; e < kStep * kColumns; e += kThreads) {
          const int step = of_right == Walk::along_rows ? e / kColumns : e % kStep;
          const int c = of_right == Walk::along_rows ? e % kColumns : e / kStep;
          y[step * kColumnPitch + c] = right(i + step, c);
        }
      });
      block.phase([&](int thread) { add(x, y, thread, sums[thread]); });
    }
    block.phase([&](int thread) {
      LLAVA_FA_UNROLL
      for (int r = 0; r < kRowsEach; ++r) {
        LLAVA_FA_UNROLL
        for (int c = 0; c < kColumnsEach; ++c) {
          put(first_row(thread) + r, thread % kColumnThreads + c * kColumnThreads,
              sums[thread].of[r][c]);
        }
      }
    });
  }

 private:
  static constexpr int kColumnThreads = 16, kRowsEach = 2, kColumnsEach = 4;
  static constexpr int kPitch = kStep + 1;  // rows of a tile in different banks, and columns
  static constexpr int kColumnPitch = kColumns + 1;
  static_assert(kColumnThreads * kColumnsEach == kColumns);
  static_assert(kThreads / kColumnThreads * kRowsEach == kRows);

  struct Sums {
    Complex of[kRowsEach][kColumnsEach];
  };

  LLAVA_FA_KERNEL static int first_row(int thread) { return thread / kColumnThreads * kRowsEach; }

  LLAVA_FA_KERNEL static void add(const Complex* x, const Complex* y, int thread, Sums& sums) {
    const int row = first_row(thread), column = thread % kColumnThreads;
    for (int i = 0; i < kStep; ++i) {
      LLAVA_FA_UNROLL
      for (int r = 0; r < kRowsEach; ++r) {
        LLAVA_FA_UNROLL
        for (int c = 0; c < kColumnsEach; ++c) {
          add_product(x[(row + r) * kPitch + i], y[i * kColumnPitch + column + c * kColumnThreads],
                      sums.of[r][c]);
        }
      }
    }
  }
};

// A product (rows, cols) in tiles, one for each block of a grid (tiles()). Tiles of the same rows
// are neighbours, so that they read the left operand at the same time.
struct ProductGrid {
  Index rows;
  Index cols;

  LLAVA_FA_SHARED Index row_tiles() const {
    return (rows + ProductTile::kRows - 1) / ProductTile::kRows;
  }
  LLAVA_FA_SHARED Index column_tiles() const {
    return (cols + ProductTile::kColumns - 1) / ProductTile::kColumns;
  }
  Index tiles() const { return row_tiles() * column_tiles(); }
  LLAVA_FA_SHARED Index first_row(Index tile) const {
    return tile / column_tiles() * ProductTile::kRows;
  }
  LLAVA_FA_SHARED Index first_column(Index tile) const {
    return tile % column_tiles() * ProductTile::kColumns;
  }

  // put(i, j, sum over k < inner of left(i, k) right(k, j)) for this block's part of the product;
  // operands as ProductTile's, also asked for rows and columns outside.
  template <Walk of_left, Walk of_right = Walk::along_rows, class Block, class Left, class Right,
            class Put>
  LLAVA_FA_KERNEL void multiply(Block& block, Index inner, Left left, Right right, Put put) const {
    const Index row = first_row(block.index(0)), column = first_column(block.index(0));
    ProductTile::multiply<of_left, of_right>(
        block, inner, [&](int r, Index k) { return left(row + r, k); },
        [&](Index k, int c) { return right(k, column + c); },
        [&](int r, int c, Complex sum) {
          if (row + r < rows && column + c < cols) put(row + r, column + c, sum);
        });
  }
};

}  // namespace llava_fa::cuda

// A second moment to its factor R = M diag(D)^1/2 on a device, and rows times R. Twin of
// ../cpu/feedback_filter.cpp, whose first lines have the steps, and of apply_filter in
// ../cpu/feedback.cpp.
#pragma once

#include <cmath>

#include "linalg.hpp"
#include "llava_fa/feedback.hpp"

namespace llava_fa::cuda {

inline constexpr int kFilterBlock = static_cast<int>(FeedbackFilter::kBlock);

// A block of the filter's columns on a device.
struct FilterBlock {
  const float* coefficients;  // (first + width, 2 width), M as FeedbackFilter has it
  const float* diagonal;      // (cols), of all columns
  Index first;
  int width;

  LLAVA_FA_SHARED Complex at(Index i, Index c) const {
    const float* const row = coefficients + i * 2 * width;
    return {row[c], row[width + c]};
  }
};

// Σ̃ + damping I from its half spectrum, both index orders reversed: the lower triangle. Grid
// (size).
struct AssembleMoment {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  const Complex* half;  // (size / 2 + 1, size), of F Σ Fᵀ with Parseval weights
  Index size;
  float damping;
  Complex* factor;  // (size, size)
  int* failed;      // becomes 0

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index i = block.index(0);
    block.phase([&](int thread) {
      if (i == 0 && thread == 0) *failed = 0;
      for (Index j = thread; j <= i; j += kThreads) {
        const Complex entry = moment(size - 1 - i, size - 1 - j);
        factor[i * size + j] = j < i ? entry : Complex{entry.real + damping, 0.0f};
      }
    });
  }

 private:
  // conj(F) Σ Fᵀ: row k of conj(F) is row size - k of F, and rows above size / 2 mirror others.
  LLAVA_FA_KERNEL Complex moment(Index k, Index l) const {
    const Index row = k == 0 ? 0 : size - k;
    if (row <= size / 2) return kept(row, l);
    return conjugate(kept(size - row, l == 0 ? 0 : size - l));
  }

  LLAVA_FA_KERNEL Complex kept(Index row, Index col) const {
    const bool own_mirror = row == 0 || 2 * row == size;
    return (own_mirror ? 1.0f : 0.70710678118654752440f) * half[row * size + col];
  }
};

// The Cholesky factor of a tile on the diagonal, in place, and its inverse's adjoint. Grid (1).
struct FactorTile {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  Complex* tile;  // (width, width), rows pitch entries apart: the lower triangle
  int width;      // up to kFilterBlock
  Index pitch;
  Complex* inverse_adjoint;  // (width, width), the upper triangle, zero below
  int* failed;               // becomes 1 if the tile is not positive definite

  static constexpr Index shared_bytes() {
    return kFilterBlock * kPitch * Index{sizeof(Complex)} + Index{sizeof(float)};
  }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    Complex* const lower = block.template shared<Complex>();
    float* const pivot = reinterpret_cast<float*>(lower + kFilterBlock * kPitch);
    block.phase([&](int thread) {
      for (int e = thread; e < width * width; e += kThreads) {
        if (e % width <= e / width) at(lower, e / width, e % width) = global(e);
      }
    });
    for (int j = 0; j < width; ++j) {
      block.phase([&](int thread) {
        if (thread == 0) *pivot = root(at(lower, j, j).real);
      });
      block.phase([&](int thread) {
        if (thread == 0) at(lower, j, j) = {*pivot, 0.0f};
        for (int i = j + 1 + thread; i < width; i += kThreads) {
          at(lower, i, j) = (1.0f / *pivot) * at(lower, i, j);
        }
      });
      block.phase([&](int thread) { update(lower, j, thread); });
    }
    block.phase([&](int thread) {
      for (int e = thread; e < width * width; e += kThreads) {
        if (e % width <= e / width) global(e) = at(lower, e / width, e % width);
      }
      for (int c = thread; c < width; c += kThreads) invert(lower, c);
    });
  }

 private:
  static constexpr int kPitch = kFilterBlock + 1;

  LLAVA_FA_KERNEL static Complex& at(Complex* lower, int i, int j) { return lower[i * kPitch + j]; }
  LLAVA_FA_KERNEL Complex& global(int e) const { return tile[e / width * pitch + e % width]; }

  // Of what is not positive, 1, so that the kernels after this one have something to go on with.
  LLAVA_FA_KERNEL float root(float square) const {
    if (square > 0.0f && square < 3e38f) return std::sqrt(square);
    *failed = 1;
    return 1.0f;
  }

  // What column j takes from those after it.
  LLAVA_FA_KERNEL void update(Complex* lower, int j, int thread) const {
    const int rest = width - j - 1;
    for (int e = thread; e < rest * rest; e += kThreads) {
      const int i = j + 1 + e / rest, l = j + 1 + e % rest;
      if (l > i) continue;
      Complex& entry = at(lower, i, l);
      entry = entry - at(lower, i, j) * conjugate(at(lower, l, j));
    }
  }

  // Column c of the inverse, by substitution; its adjoint is row c.
  LLAVA_FA_KERNEL void invert(Complex* lower, int c) const {
    Complex* const row = inverse_adjoint + c * width;
    for (int i = 0; i < width; ++i) {
      Complex sum = {i == c ? 1.0f : 0.0f, 0.0f};
      for (int m = c; m < i; ++m) sum = sum - at(lower, i, m) * conjugate(row[m]);
      row[i] = i < c ? Complex{0, 0} : conjugate((1.0f / at(lower, i, i).real) * sum);
    }
  }
};

// What the columns from `first` on, of which `width` are factored, take from those after them.
// Tiles above the diagonal are left out.
struct UpdateTrailing {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  Complex* factor;  // (size, size)
  Index size;
  Index first;
  int width;

  LLAVA_FA_SHARED ProductGrid grid() const { return {size - begin(), size - begin()}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index tile = block.index(0);
    if (grid().first_column(tile) >= grid().first_row(tile) + ProductTile::kRows) return;
    grid().multiply<Walk::along_rows, Walk::down_columns>(
        block, width, [&](Index i, Index k) { return at(i, k); },
        [&](Index k, Index j) { return conjugate(at(j, k)); },
        [&](Index i, Index j, Complex sum) {
          if (j > i) return;
          Complex& entry = factor[(begin() + i) * size + begin() + j];
          entry = entry - sum;
        });
  }

 private:
  LLAVA_FA_SHARED Index begin() const { return first + width; }

  // Of the factored columns, rows counted from begin() on.
  LLAVA_FA_KERNEL Complex at(Index i, Index k) const {
    const Index row = begin() + i;
    return row < size && k < width ? factor[row * size + first + k] : Complex{0, 0};
  }
};

// The factor in the filter's blocks (llava_fa/feedback.hpp). Grid (size, blocks): a row of a block.
struct FillFilter {
  static constexpr int kThreads = 2 * kFilterBlock;
  static constexpr int kMinBlocks = 1;

  const Complex* factor;  // (size, size), reversed
  Index size;
  float* blocks;
  float* diagonal;  // (size)

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index i = block.index(0), first = block.index(1) * kFilterBlock;
    const Index width = size - first < kFilterBlock ? size - first : kFilterBlock;
    if (i >= first + width) return;
    float* const row = blocks + FeedbackFilter::block_offset(block.index(1)) + i * 2 * width;
    block.phase([&](int thread) {
      if (thread >= 2 * width) return;
      const Index j = first + thread % width;
      const float root = reversed(j, j).real;
      const Complex entry = i < j ? (1.0f / root) * reversed(i, j) : Complex{0, 0};
      row[thread] = thread < width ? entry.real : entry.imag;
      if (thread < width && i == j) diagonal[j] = root * root;
    });
  }

 private:
  LLAVA_FA_KERNEL Complex reversed(Index i, Index j) const {
    return factor[(size - 1 - i) * size + size - 1 - j];
  }
};

// rows = rows R in the block's columns, in place: they take from themselves and those before, so
// the blocks come from the last one to the first.
struct ApplyFilter {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  Complex* values;  // (rows, cols)
  Index rows;
  Index cols;
  FilterBlock filter;

  LLAVA_FA_SHARED ProductGrid grid() const { return {rows, filter.width}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index inner = filter.first + filter.width;
    grid().multiply<Walk::along_rows>(
        block, inner,
        [&](Index i, Index k) {
          return i < rows && k < inner ? values[i * cols + k] : Complex{0, 0};
        },
        [&](Index k, Index j) {
          return k < inner && j < filter.width ? filter.at(k, j) : Complex{0, 0};
        },
        [&](Index i, Index j, Complex sum) {
          Complex& value = values[i * cols + filter.first + j];
          value = std::sqrt(filter.diagonal[filter.first + j]) * (value + sum);
        });
  }
};

}  // namespace llava_fa::cuda

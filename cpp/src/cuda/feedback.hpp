// Codes under error feedback, one block of the filter's columns after another. Twin of
// ../cpu/feedback.cpp, whose first lines have the formulas.
//
// 1. FeedbackTargets: targets T = A + E M and references F = A M over all columns before the block.
// 2. EncodeBlock: column after column of the block, the points of T; error and original are carried
//    to the later ones. Rows never see each other's errors; those that are coded together share a
//    block of threads.
#pragma once

#include "llava_fa/feedback.hpp"
#include "trellis_search.hpp"

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

// Grid (tiles of rows, 2): T, then F. A thread has 2 rows of 4 columns.
struct FeedbackTargets {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int kRows = 32;
  static constexpr int kStep = 16;  // divides kFilterBlock
  static constexpr int kColumnThreads = 16, kRowsEach = 2, kColumnsEach = 4;
  static_assert(kColumnThreads * kColumnsEach == kFilterBlock);
  static_assert(kThreads / kColumnThreads * kRowsEach == kRows);

  const Complex* spectrum;  // A, (rows, cols)
  const Complex* errors;    // E, (rows, cols), of the columns before
  Index rows;
  Index cols;
  FilterBlock filter;
  Complex* targets;  // (2, kFilterBlock, rows)

  static constexpr Index shared_bytes() {
    return (kRows * kPitch + kStep * kFilterBlock) * Index{sizeof(Complex)};
  }
  Index tiles() const { return (rows + kRows - 1) / kRows; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0) * kRows;
    const Complex* const left = block.index(1) == 0 ? errors : spectrum;
    Complex* const x = block.template shared<Complex>();
    Complex* const m = x + kRows * kPitch;
    typename Block::template PerThread<Sums> sums;
    block.start([&](int thread) { sums[thread] = {}; });
    for (Index i = 0; i < filter.first; i += kStep) {
      block.phase([&](int thread) { load(left, row, i, thread, x, m); });
      block.phase([&](int thread) { add(x, m, thread, sums[thread]); });
    }
    block.phase([&](int thread) { store(row, block.index(1), thread, sums[thread]); });
  }

 private:
  static constexpr int kPitch = kStep + 1;  // rows of a tile in different banks

  struct Sums {
    Complex of[kRowsEach][kColumnsEach];
  };

  LLAVA_FA_KERNEL void load(const Complex* left, Index row, Index i, int thread, Complex* x,
                            Complex* m) const {
    for (int e = thread; e < kRows * kStep; e += kThreads) {
      const Index r = row + e / kStep;
      x[e / kStep * kPitch + e % kStep] = r < rows ? left[r * cols + i + e % kStep] : Complex{0, 0};
    }
    for (int e = thread; e < kStep * kFilterBlock; e += kThreads) {
      const int c = e % kFilterBlock;
      m[e] = c < filter.width ? filter.at(i + e / kFilterBlock, c) : Complex{0, 0};
    }
  }

  LLAVA_FA_KERNEL static void add(const Complex* x, const Complex* m, int thread, Sums& sums) {
    const int row = thread / kColumnThreads * kRowsEach, column = thread % kColumnThreads;
    for (int i = 0; i < kStep; ++i) {
      LLAVA_FA_UNROLL
      for (int r = 0; r < kRowsEach; ++r) {
        LLAVA_FA_UNROLL
        for (int c = 0; c < kColumnsEach; ++c) {
          add_product(x[(row + r) * kPitch + i], m[i * kFilterBlock + column + c * kColumnThreads],
                      sums.of[r][c]);
        }
      }
    }
  }

  LLAVA_FA_KERNEL void store(Index first_row, Index which, int thread, const Sums& sums) const {
    LLAVA_FA_UNROLL
    for (int r = 0; r < kRowsEach; ++r) {
      const Index row = first_row + thread / kColumnThreads * kRowsEach + r;
      LLAVA_FA_UNROLL
      for (int c = 0; c < kColumnsEach; ++c) {
        const int column = thread % kColumnThreads + c * kColumnThreads;
        if (row < rows && column < filter.width) {
          targets[(which * kFilterBlock + column) * rows + row] =
              spectrum[row * cols + filter.first + column] + sums.of[r][c];
        }
      }
    }
  }
};

// Chooses points of a constellation; rows do not depend on each other.
struct NearestChooser {
  static constexpr Index kRows = 32;  // of a block

  NearestPoint nearest;

  struct Room {};

  LLAVA_FA_SHARED static Index blocks(Index rows) { return (rows + kRows - 1) / kRows; }
  LLAVA_FA_SHARED static Index begin(Index rows, Index i) {
    return i * kRows < rows ? i * kRows : rows;
  }
  Index shared_bytes() const { return 0; }

  template <class Block>
  LLAVA_FA_KERNEL Room room_of(Block&, void*) const {
    return {};
  }

  // put(t, index) of the point for rows t < count, given target(t), relative to size(t).
  template <class Block, class TargetOf, class SizeOf, class Put>
  LLAVA_FA_KERNEL void choose(Block& block, const Room&, int count, TargetOf target, SizeOf,
                              Put put) const {
    block.phase([&](int thread) {
      for (int t = thread; t < count; t += Block::kThreads) put(t, nearest(target(t)));
    });
  }
};

// Chooses a path through the trellis of a segment.
template <bool in_shared>
struct PathChooser {
  PathSearch<in_shared> path;

  using Room = typename PathSearch<in_shared>::Room;

  LLAVA_FA_SHARED static Index blocks(Index rows) { return segment_count(rows); }
  LLAVA_FA_SHARED static Index begin(Index rows, Index i) { return segment_begin(rows, i); }
  Index shared_bytes() const { return PathSearch<in_shared>::shared_bytes(path.order); }

  template <class Block>
  LLAVA_FA_KERNEL Room room_of(Block& block, void* shared) const {
    return path.room_of(block, shared);
  }

  template <class Block, class TargetOf, class SizeOf, class Put>
  LLAVA_FA_KERNEL void choose(Block& block, const Room& room, int count, TargetOf target,
                              SizeOf size, Put put) const {
    path.find(
        block, room, count, [&](int t) { return SearchTarget::of(target(t), size(t) * size(t)); },
        put);
  }
};

// Sums over the columns j of a row of D_j times |(Δ M)_j|^2, <(A M)_j, (Q M)_j>, |(Q M)_j|^2 and
// |(A M)_j|^2.
struct FedBackSum {
  double cost, cross, power, energy;
};

// Grid (Chooser::blocks).
template <class Chooser>
struct EncodeBlock {
  static constexpr int kThreads = SearchOrder::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int kMostRows = PathSearch<true>::kMostRows + 1;  // of a block

  Chooser chooser;
  const Complex* table;     // what points stand for
  const Complex* spectrum;  // (rows, cols)
  Index rows;
  Index cols;
  const float* sizes;  // (rows)
  float gain;
  FilterBlock filter;
  Complex* targets;       // (2, kFilterBlock, rows), T and F
  Complex* errors;        // (rows, cols), those of the block's columns are written
  std::uint16_t* points;  // (rows, cols), likewise
  FedBackSum* sums;       // (rows), those of all columns so far

  static constexpr Index shared_bytes(Index of_chooser) {
    return kMostRows * Index{sizeof(Carried)} + of_chooser;
  }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index begin = chooser.begin(rows, block.index(0));
    const int count = static_cast<int>(chooser.begin(rows, block.index(0) + 1) - begin);
    Carried* const carried = block.template shared<Carried>();
    const auto room = chooser.room_of(block, carried + kMostRows);
    for (int c = 0; c < filter.width; ++c) {
      std::uint16_t* const chosen = points + begin * cols + filter.first + c;
      chooser.choose(
          block, room, count,
          [&](int t) {
            const float size = sizes[begin + t];
            return (size > 0.0f ? 1.0f / size : 0.0f) * targets[c * rows + begin + t];
          },
          [&](int t) { return sizes[begin + t]; },
          [&](int t, int index) { chosen[t * cols] = static_cast<std::uint16_t>(index); });
      block.phase([&](int thread) {
        for (int t = thread; t < count; t += kThreads) carried[t] = finish(begin + t, c);
      });
      block.phase([&](int thread) { carry(carried, begin, count, c, thread); });
    }
  }

 private:
  struct Carried {
    Complex error, original;
  };

  // Adds column c to the sums of a row; its error and its original.
  LLAVA_FA_KERNEL Carried finish(Index row, int c) const {
    const Index j = filter.first + c, place = row * cols + j;
    const Complex t = targets[c * rows + row], f = targets[(kFilterBlock + c) * rows + row];
    const Complex q = RowSizes::decode_scale(sizes[row], gain) * table[points[place]];
    const Complex delta = t - q, of_codes = f - delta;  // (Δ M)_j, (Q M)_j
    const double weight = filter.diagonal[j];
    FedBackSum sum = j == 0 ? FedBackSum{0, 0, 0, 0} : sums[row];
    sum.cost += weight * squared_size(delta);
    sum.cross += weight * (f.real * of_codes.real + f.imag * of_codes.imag);
    sum.power += weight * squared_size(of_codes);
    sum.energy += weight * squared_size(f);
    sums[row] = sum;
    const Complex original = spectrum[place], error = original - q;
    errors[place] = error;
    return {error, original};
  }

  // Adds what column c gives to the later columns of the block.
  LLAVA_FA_KERNEL void carry(const Carried* carried, Index begin, int count, int c,
                             int thread) const {
    for (int e = thread; e < count * (filter.width - c - 1); e += kThreads) {
      const int t = e % count, later = c + 1 + e / count;
      const Complex m = filter.at(filter.first + c, later);
      add_product(carried[t].error, m, targets[later * rows + begin + t]);
      add_product(carried[t].original, m, targets[(kFilterBlock + later) * rows + begin + t]);
    }
  }
};

}  // namespace llava_fa::cuda

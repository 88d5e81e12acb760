// Codes under error feedback, one block of the filter's columns after another. Twin of
// ../cpu/feedback.cpp, whose first lines have the formulas.
//
// 1. FeedbackTargets: targets T = A + E M and references F = A M over all columns before the block.
// 2. EncodeBlock: column after column of the block, the points of T; error and original are carried
//    to the later ones. Rows never see each other's errors; those that are coded together share a
//    block of threads.
#pragma once

#include "feedback_filter.hpp"
#include "trellis_search.hpp"

namespace llava_fa::cuda {

// The rows of T, then those of F, as one product.
struct FeedbackTargets {
  static constexpr int kThreads = ProductTile::kThreads;
  static constexpr int kMinBlocks = 2;

  const Complex* spectrum;  // A, (rows, cols)
  const Complex* errors;    // E, (rows, cols), of the columns before
  Index rows;
  Index cols;
  FilterBlock filter;
  Complex* targets;  // (2, kFilterBlock, rows)

  LLAVA_FA_SHARED ProductGrid grid() const { return {2 * rows, filter.width}; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    grid().multiply<Walk::along_rows>(
        block, filter.first, [&](Index i, Index k) { return left(i, k); },
        [&](Index k, Index j) { return j < filter.width ? filter.at(k, j) : Complex{0, 0}; },
        [&](Index i, Index j, Complex sum) {
          const Index which = i / rows, row = i % rows;
          targets[(which * kFilterBlock + j) * rows + row] =
              spectrum[row * cols + filter.first + j] + sum;
        });
  }

 private:
  LLAVA_FA_KERNEL Complex left(Index i, Index k) const {
    if (i >= 2 * rows) return {0, 0};
    return i < rows ? errors[i * cols + k] : spectrum[(i - rows) * cols + k];
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

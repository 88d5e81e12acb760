// Products of sixteen points with entries of x whose sums over a block of columns just fit words of
// 16 bits: what rings and turned points look up.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include "product_tables.hpp"

namespace llava_fa::cpu {

inline constexpr Index kWordBlock = 16;  // columns that share a step
// Sum of a block's largest products, in steps. Rounding adds at most one per column: sums of whole
// blocks stay below 2^15.
inline constexpr std::int32_t kMostWordSum = 32700;

class WordTables {
 public:
  static constexpr Index kTileColumns = 64;

  // Tables of whole tiles, zero beyond `cols`, of points none larger than `largest`. Integers are
  // those nearest to the products in steps less `offset`.
  WordTables(const ProductTable& points, float largest, float offset, VectorView x, Index cols,
             Index tiles, int threads)
      : tables_(tiles * kTileColumns) {
    parallel_for(tiles, threads, [&](Index tile) {
      constexpr Index kBlocks = kTileColumns / kWordBlock;
      for (Index block = tile * kBlocks; block < (tile + 1) * kBlocks; ++block) {
        fill_block(block, points, largest, offset, x, cols);
      }
    });
  }

  float step(Index first_column) const { return tables_.step(first_column / kWordBlock); }

  // Bytes of the products of a register of rows with column l: low and high planes of one part.
  struct Bytes {
    Register low, high;
  };
  Bytes look_up(Index l, int component, Register index) const {
    const std::uint8_t* planes = tables_.group(l) + component * 2 * kTableSize;
    return {table_entries(load_table(planes), index),
            table_entries(load_table(planes + kTableSize), index)};
  }

 private:
  void fill_block(Index block, const ProductTable& points, float largest, float offset,
                  VectorView x, Index cols) {
    const Index first = block * kWordBlock;
    const Entries<kWordBlock> entries(x, first, cols);
    double magnitudes[kWordBlock];  // squares of small numbers would be lost in float32
    for (Index l = 0; l < kWordBlock; ++l) {
      const double re = entries.real[l], im = entries.imag[l];
      magnitudes[l] = std::sqrt(re * re + im * im);
    }
    double sum = 0;
    for (const double magnitude : magnitudes) sum += magnitude;
    const auto bound = static_cast<float>(largest * sum);
    const float shift = offset * bound / static_cast<float>(kMostWordSum);
    tables_.fill(block, bound, kMostWordSum, 0, [&](Index l) {
      Products products(-shift);
      products.add(points, entries.real[l - first], entries.imag[l - first]);
      return products;
    });
  }

  FixedPointTables<2, 8, kWordBlock> tables_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

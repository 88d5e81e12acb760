// Products of points with entries of x in fixed point, as tables that stay in registers: sixteen
// values per table, cut in planes of a few bits, one byte each; and the loop over a matrix's
// panels.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "code_tiles.hpp"
#include "coded_product.hpp"
#include "half_tables.hpp"
#include "parallel.hpp"

namespace llava_fa::cpu {

// Vectors are taken whose largest entry is between these; smaller blocks of them count as zero.
inline constexpr float kLeastLargest = 1e-18f, kMostLargest = 1e18f;
inline constexpr float kLeastBound = 1e-30f;

// Real and imaginary parts of sixteen products.
struct ProductTable {
  alignas(64) float real[kTableSize];
  alignas(64) float imag[kTableSize];
};

inline constexpr Index kSixteen = 16 / kFloats;  // registers of sixteen floats

// Sixteen products in registers.
struct Products {
  Floats real[kSixteen];
  Floats imag[kSixteen];

  explicit Products(float all) {
    for (Index part = 0; part < kSixteen; ++part) real[part] = imag[part] = all_floats(all);
  }

  void add(const ProductTable& points, float re, float im) {
    const Floats x = all_floats(re), y = all_floats(im);
    for (Index part = 0; part < kSixteen; ++part) {
      const Floats point_real = load_floats(points.real + kFloats * part);
      const Floats point_imag = load_floats(points.imag + kFloats * part);
      real[part] = multiply_add(point_real, x, real[part]);
      real[part] = subtract_product(point_imag, y, real[part]);
      imag[part] = multiply_add(point_real, y, imag[part]);
      imag[part] = multiply_add(point_imag, x, imag[part]);
    }
  }
};

// Entries of x from `first` on, zeros beyond the last.
template <Index kCount>
struct Entries {
  float real[kCount] = {};
  float imag[kCount] = {};

  Entries(VectorView x, Index first, Index cols) {
    const Index begin = std::min(first, cols), count = std::min(kCount, cols - begin);
    std::copy_n(x.real + begin, count, real);
    std::copy_n(x.imag + begin, count, imag);
  }
};

// Tables of `groups` groups; every kBlock of them share one step, the value of the last bit.
// Bytes of group g: kPlanes planes of the real parts, lowest bits first, then of the imaginary
// ones. The last plane keeps all bits that are left, so that values may be signed.
template <int kPlanes, int kPlaneBits, Index kBlock>
class FixedPointTables {
 public:
  static constexpr Index kGroupBytes = 2 * kPlanes * kTableSize;

  explicit FixedPointTables(Index groups)
      : bytes_(std::make_unique_for_overwrite<std::uint8_t[]>(
            static_cast<std::size_t>(groups * kGroupBytes))),
        steps_(static_cast<std::size_t>(groups / kBlock)) {}

  const std::uint8_t* group(Index g) const { return bytes_.get() + g * kGroupBytes; }
  float step(Index block) const { return steps_[block]; }

  // Fills one block: products_of(g) gives the values of group g, none larger than `bound`, which
  // become the integers `bias` + [-largest, largest].
  template <typename ProductsOf>
  void fill(Index block, float bound, std::int32_t largest, std::int32_t bias,
            ProductsOf products_of) {
    const bool counts = bound >= kLeastBound;
    steps_[block] = counts ? bound / static_cast<float>(largest) : 0.0f;
    const float inverse = counts ? static_cast<float>(largest) / bound : 0.0f;
    for (Index g = block * kBlock; g < (block + 1) * kBlock; ++g) {
      const Products products = products_of(g);
      std::uint8_t* planes = bytes_.get() + g * kGroupBytes;
      write(products.real, inverse, bias, planes);
      write(products.imag, inverse, bias, planes + kPlanes * kTableSize);
    }
  }

 private:
  static void write(const Floats (&values)[kSixteen], float inverse, std::int32_t bias,
                    std::uint8_t* planes) {
    Register fixed[kSixteen];
    for (Index part = 0; part < kSixteen; ++part) {
      fixed[part] = add32(to_nearest(values[part] * all_floats(inverse)), all32(bias));
      if constexpr (kPlaneBits < 8) fixed[part] = spread(fixed[part]);
    }
    split_bytes<kPlanes>(fixed, planes);
  }

  // The bits of every plane in a byte of their own.
  static Register spread(Register numbers) {
    for (int plane = 0; plane + 1 < kPlanes; ++plane) {
      const Register upper = numbers & all32(-1 << (8 * plane + kPlaneBits));
      numbers = (numbers ^ upper) | shift_left32(upper, 8 - kPlaneBits);
    }
    return numbers;
  }

  std::unique_ptr<std::uint8_t[]> bytes_;
  std::vector<float> steps_;
};

// Real and imaginary sums of kVectorRows rows, a byte of a register for each, in the kernel's own
// order.
using RowSums = Floats[2][4];

// Which row each lane of RowSums holds.
using RowOrder = std::array<std::uint8_t, kVectorRows>;

// That of sums whose register p holds rows first(p) + j step, j = 0 .. 3, of every sixteen.
template <class First>
constexpr RowOrder order_by_sixteen(First first, Index step) {
  RowOrder order = {};
  for (Index lane = 0; lane < kVectorRows; ++lane) {
    const Index part = lane / kFloats, sixteen = lane % kFloats / 4, j = lane % 4;
    order[lane] = static_cast<std::uint8_t>(16 * sixteen + first(part) + j * step);
  }
  return order;
}

// Words of the rows that interleave_low8 and interleave_high8 leave, real and imaginary parts.
using WordSums = Register[2][2];

// The lanes of RowSums after add_words.
inline constexpr RowOrder kWordOrder =
    order_by_sixteen([](Index part) { return 8 * (part / 2) + part % 2; }, 2);

// sums += factor · words: part 0 and 1 of the sums have the even and the odd words of the first
// half, 2 and 3 those of the second.
[[gnu::always_inline]] inline void add_words(const Register (&words)[2], Floats factor,
                                             Floats (&sums)[4]) {
  for (int part = 0; part < 4; ++part) {
    const Register& both = words[part / 2];
    const Register chosen = part % 2 == 0 ? even_words(both) : odd_words(both);
    sums[part] = multiply_add(to_float(chosen), factor, sums[part]);
  }
}

// sums += step · words.
[[gnu::always_inline]] inline void add_words(const WordSums& words, float step, RowSums& sums) {
  for (int component = 0; component < 2; ++component) {
    add_words(words[component], all_floats(step), sums[component]);
  }
}

// sums += more.
[[gnu::always_inline]] inline void add_sums(const RowSums& more, RowSums& sums) {
  for (int component = 0; component < 2; ++component) {
    for (int part = 0; part < 4; ++part) {
      sums[component][part] = sums[component][part] + more[component][part];
    }
  }
}

// y of kVectorRows rows = factor · row scale · sums.
inline void store_rows(const RowSums& sums, const RowOrder& order, float factor,
                       const CodedMatrix& matrix, Index first_row, VectorSpan y) {
  alignas(64) float lanes[2][kVectorRows];
  for (int component = 0; component < 2; ++component) {
    for (Index part = 0; part < 4; ++part) {
      store_floats(lanes[component] + kFloats * part, sums[component][part]);
    }
  }
  for (Index lane = 0; lane < kVectorRows; ++lane) {
    const Index row = first_row + order[lane];
    if (row >= matrix.rows) continue;
    const float scale = factor * half_to_float(matrix.row_scale[row]);
    y.real[row] = scale * lanes[0][lane];
    y.imag[row] = scale * lanes[1][lane];
  }
}

// body(begin, end, state) for blocks of rows, from multiples of block_rows on; but the few rows
// that are left of kVectorRows, as the Nyquist row often is, are not worth a vector.
template <typename MakeState, typename Body>
void for_row_blocks(const CodedMatrix& matrix, VectorView x, Index block_rows, int threads,
                    VectorSpan y, MakeState make_state, Body body) {
  constexpr Index kFew = 4;
  const Index left = matrix.rows % kVectorRows, rows = matrix.rows - (left <= kFew ? left : 0);
  parallel_for(1 + ceil_div(rows, block_rows), threads, make_state, [&](Index item, auto& state) {
    if (item == 0) return multiply_point_rows(matrix, x, rows, y);
    const Index begin = (item - 1) * block_rows;
    body(begin, std::min(rows, begin + block_rows), state);
  });
}

// How many of `threads` products with a matrix' codes are worth.
inline int product_threads(const CodedMatrix& matrix, int threads, double nanoseconds_per_code) {
  const double codes = static_cast<double>(matrix.rows) * static_cast<double>(matrix.cols);
  return step_threads(threads, nanoseconds_per_code * codes);
}

// All products of a matrix. `Kernel` has kOrder, tiles(), factor() and add_tile(codes, t, sums) for
// kVectorRows rows of tile t.
template <typename Kernel>
void multiply_panels(const Kernel& kernel, const CodedMatrix& matrix, VectorView x, int threads,
                     VectorSpan y) {
  constexpr Index kMostPanels = 2;  // that share a tile's tables while these are near
  constexpr Index kMostVectors = kMostPanels * kPanelRows / kVectorRows;
  const Index panels = ceil_div(matrix.rows, kPanelRows);
  const Index item_rows = kPanelRows * std::clamp(panels / (4 * threads), Index{1}, kMostPanels);
  const CodeTiles& tiles = kernel.tiles();
  for_row_blocks(
      matrix, x, item_rows, threads, y, [] { return CodeTiles::Scratch(); },
      [&](Index begin, Index end, CodeTiles::Scratch& scratch) {
        RowSums sums[kMostVectors] = {};
        for (Index t = 0; t < tiles.count(); ++t) {
          for (Index first = begin; first < end; first += kPanelRows) {
            const std::uint8_t* codes = tiles.tile(first, t, scratch);
            for (Index row = first; row < std::min(end, first + kPanelRows); row += kVectorRows) {
              kernel.add_tile(codes + row - first, t, sums[(row - begin) / kVectorRows]);
            }
          }
        }
        for (Index row = begin; row < end; row += kVectorRows) {
          store_rows(sums[(row - begin) / kVectorRows], Kernel::kOrder, kernel.factor(), matrix,
                     row, y);
        }
      });
}

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

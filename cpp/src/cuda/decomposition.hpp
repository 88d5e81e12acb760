// Orthonormal bases of a few columns: the Cholesky factor of their products in float64, by whose
// inverse they are multiplied. Twice over, the columns are orthonormal to float32. Twin of
// ../cpu/decomposition.cpp.
//
// 1. Gram: G = Yᴴ Y.
// 2. Triangle: G = Rᴴ R, and R⁻¹.
// 3. Y R⁻¹ (linalg.hpp).
#pragma once

#include <cmath>

#include "arena.hpp"
#include "complex.hpp"

namespace llava_fa::cuda {

struct alignas(16) ComplexDouble {
  double real, imag;
};

LLAVA_FA_SHARED ComplexDouble as_double(Complex z) { return {z.real, z.imag}; }

// sum += conj(a) b
LLAVA_FA_SHARED void add_adjoint_product(ComplexDouble a, ComplexDouble b, ComplexDouble& sum) {
  sum.real += a.real * b.real + a.imag * b.imag;
  sum.imag += a.real * b.imag - a.imag * b.real;
}

// Grid (tiles, tiles); those below the diagonal are left out.
struct Gram {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int kTile = 8, kSlices = kThreads / (kTile * kTile);

  const Complex* columns;  // (length, count)
  Index length;
  Index count;
  ComplexDouble* gram;  // (count, count), the upper triangle

  static constexpr Index shared_bytes() { return kThreads * Index{sizeof(ComplexDouble)}; }
  Index tiles() const { return ceil_div(count, kTile); }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    if (block.index(0) > block.index(1)) return;
    const Index first_row = block.index(0) * kTile, first_column = block.index(1) * kTile;
    ComplexDouble* const shares = block.template shared<ComplexDouble>();
    block.phase([&](int thread) {
      const int pair = thread % (kTile * kTile);
      const Index a = first_row + pair / kTile, b = first_column + pair % kTile;
      ComplexDouble sum = {0, 0};
      if (a < count && b < count) {
        for (Index i = thread / (kTile * kTile); i < length; i += kSlices) {
          add_adjoint_product(as_double(columns[i * count + a]), as_double(columns[i * count + b]),
                              sum);
        }
      }
      shares[thread] = sum;
    });
    block.phase([&](int thread) {
      const Index a = first_row + thread / kTile, b = first_column + thread % kTile;
      if (thread >= kTile * kTile || a >= count || b >= count) return;
      ComplexDouble sum = shares[thread];
      for (int s = 1; s < kSlices; ++s) {
        sum.real += shares[thread + s * kTile * kTile].real;
        sum.imag += shares[thread + s * kTile * kTile].imag;
      }
      gram[a * count + b] = sum;
    });
  }
};

// Row after row. A column that depends on those before it, so that next to nothing of it is left,
// gets a row of zeros in R and a column of zeros in the inverse: it becomes zero. Grid (1).
struct Triangle {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  // Of a column's square: what the rounding of float32 leaves of a dependent one, and a bit.
  static constexpr double kLeastRest = 1e-10;

  ComplexDouble* gram;  // (count, count), the upper triangle; overwritten by the inverse
  Index count;
  ComplexDouble* triangle;  // R, (count, count), the upper triangle
  Complex* inverse;         // (count, count), zero below the diagonal

  static constexpr Index shared_bytes() { return sizeof(double); }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    double* const diagonal = block.template shared<double>();
    for (Index j = 0; j < count; ++j) {
      block.phase([&](int thread) {
        for (Index l = j + thread; l < count; l += kThreads) find_rest(j, l, diagonal);
      });
      block.phase([&](int thread) {
        const double scale = *diagonal > 0 ? 1.0 / *diagonal : 0.0;
        for (Index l = j + thread; l < count; l += kThreads) {
          ComplexDouble& entry = triangle[j * count + l];
          entry = l == j ? ComplexDouble{*diagonal, 0}
                         : ComplexDouble{scale * entry.real, scale * entry.imag};
        }
      });
    }
    block.phase([&](int thread) {
      for (Index l = thread; l < count; l += kThreads) invert_column(l);
    });
  }

 private:
  // What is left of entry (j, l) of G after the rows before; of the diagonal, its root.
  LLAVA_FA_KERNEL void find_rest(Index j, Index l, double* diagonal) const {
    ComplexDouble sum = {0, 0};
    for (Index k = 0; k < j; ++k) {
      add_adjoint_product(triangle[k * count + j], triangle[k * count + l], sum);
    }
    const ComplexDouble of_gram = gram[j * count + l];
    triangle[j * count + l] = {of_gram.real - sum.real, of_gram.imag - sum.imag};
    if (l > j) return;
    const double rest = of_gram.real - sum.real;
    *diagonal = rest > kLeastRest * of_gram.real ? std::sqrt(rest) : 0.0;
  }

  LLAVA_FA_KERNEL void invert_column(Index l) const {
    for (Index k = count - 1; k >= 0; --k) {
      ComplexDouble entry = {0, 0};
      const double own = triangle[k * count + k].real;
      if (k == l && own > 0) entry.real = 1.0 / own;
      if (k < l && own > 0) {
        ComplexDouble sum = {0, 0};
        for (Index m = k + 1; m <= l; ++m)
          add_product(triangle[k * count + m], gram[m * count + l], sum);
        entry = {-sum.real / own, -sum.imag / own};
      }
      gram[k * count + l] = entry;
      inverse[k * count + l] = {static_cast<float>(entry.real), static_cast<float>(entry.imag)};
    }
  }

  LLAVA_FA_KERNEL static void add_product(ComplexDouble a, ComplexDouble b, ComplexDouble& sum) {
    sum.real += a.real * b.real - a.imag * b.imag;
    sum.imag += a.real * b.imag + a.imag * b.real;
  }
};

}  // namespace llava_fa::cuda

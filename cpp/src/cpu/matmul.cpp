// CPU side of the packed product: which kernel multiplies codes with one vector, and complex rows
// to rows of the real Fourier basis for many.
//
// With H_l, l = 0 .. n/2, the half spectrum of the activations, columns l and n - l of a complex
// row combine to
//   Re y += Re(a + b)/sqrt2 · Re H_l + Im(a - b)/sqrt2 · Im H_l
//   Im y += Im(a + b)/sqrt2 · Re H_l - Re(a - b)/sqrt2 · Im H_l,   a = Ã[k, l], b = Ã[k, n - l],
// and the self-conjugate columns l = 0 and l = n/2 enter once.
#include <algorithm>
#include <cmath>

#include "coded_product.hpp"
#include "llava_fa/spectrum.hpp"
#include "parallel.hpp"
#include "points.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRowsPerItem = 8;
constexpr double kNanosecondsPerEntry = 1.0;
constexpr Index kDecodedRowsPerItem = 32;
constexpr double kNanosecondsPerPoint = 1.5;
constexpr float kHalfSqrt = 0.70710678118654752440f;

// One row as multipliers of the real parts of H, then of its imaginary parts: one row for Re y and
// one for Im y. Im H is zero where l is its own mirror, and so is its multiplier.
void fold_row(const float* re, const float* im, Index n, float* real_row, float* imag_row) {
  const Index pairs = (n - 1) / 2, imag_start = half_rows(n);
  real_row[0] = re[0];
  imag_row[0] = im[0];
  real_row[imag_start] = imag_row[imag_start] = 0.0f;
  for (Index l = 1; l <= pairs; ++l) {
    real_row[l] = kHalfSqrt * (re[l] + re[n - l]);
    imag_row[l] = kHalfSqrt * (im[l] + im[n - l]);
    real_row[imag_start + l] = kHalfSqrt * (im[l] - im[n - l]);
    imag_row[imag_start + l] = kHalfSqrt * (re[n - l] - re[l]);
  }
  if (n % 2 == 0) {
    real_row[n / 2] = re[n / 2];
    imag_row[n / 2] = im[n / 2];
    real_row[imag_start + n / 2] = imag_row[imag_start + n / 2] = 0.0f;
  }
}

enum class Kernel { points, tables, turns, rings, trellis };

Kernel kernel_for([[maybe_unused]] const CodedMatrix& matrix,
                  [[maybe_unused]] Precision precision) {
#if defined(__AVX2__)
  if (precision == Precision::half && turn_products_apply(matrix)) return Kernel::turns;
  if (table_products_apply(matrix)) return Kernel::tables;
  if (precision == Precision::single) return Kernel::points;
  if (matrix.trellis != nullptr) return Kernel::trellis;
  if (ring_products_apply(matrix)) return Kernel::rings;
#endif
  return Kernel::points;
}

#if defined(__AVX2__)
// Not so if an entry is not finite, or products would leave the range of float32.
bool fits_fixed_point(VectorView x, Index count) {
  float largest = 0, sum = 0;  // the sum shows NaN, which the maximum passes over
  for (Index l = 0; l < count; ++l) {
    largest = std::max({largest, std::fabs(x.real[l]), std::fabs(x.imag[l])});
    sum += std::fabs(x.real[l]) + std::fabs(x.imag[l]);
  }
  return std::isfinite(sum) && largest <= kMostLargest &&
         (largest == 0.0f || largest >= kLeastLargest);
}
#endif

}  // namespace

void CpuBackend::fold_rows(const float* real, const float* imag, Index rows, Index n, int threads,
                           float* panel) const {
  const Index width = 2 * half_rows(n);
  const int team = worthwhile_threads(threads, kNanosecondsPerEntry * rows * n);
  parallel_for(ceil_div(rows, kRowsPerItem), team, [&](Index item) {
    const Index end = std::min(rows, (item + 1) * kRowsPerItem);
    for (Index k = item * kRowsPerItem; k < end; ++k) {
      fold_row(real + k * n, imag + k * n, n, panel + k * width, panel + (rows + k) * width);
    }
  });
}

void CpuBackend::decode_folded_rows(const CodedMatrix& matrix, Index first_row, Index rows,
                                    int threads, float* panel) const {
  const Index n = matrix.cols, width = 2 * half_rows(n);
  const int team = step_threads(threads, kNanosecondsPerPoint * double(rows) * double(n));
  struct RowDecoder {
    PointIndexes indexes;
    FloatBuffer planes;
  };
  parallel_for(
      ceil_div(rows, kDecodedRowsPerItem), team,
      [&] { return RowDecoder{PointIndexes(matrix), FloatBuffer(2 * n)}; },
      [&](Index item, RowDecoder& decoder) {
        float *re = decoder.planes.data(), *im = decoder.planes.data() + n;
        const Index end = std::min(rows, (item + 1) * kDecodedRowsPerItem);
        for (Index k = item * kDecodedRowsPerItem; k < end; ++k) {
          const float scale = half_to_float(matrix.row_scale[first_row + k]);
          decode_points(decoder.indexes.of_row(first_row + k), n, point_pairs(matrix), scale, re,
                        im);
          fold_row(re, im, n, panel + k * width, panel + (rows + k) * width);
        }
      });
}

Index CpuBackend::most_vectors(const CodedMatrix& matrix, Precision precision) const {
  return kernel_for(matrix, precision) == Kernel::points ? 4 : 16;
}

void CpuBackend::multiply_vector(const CodedMatrix& matrix, const float* x_real,
                                 const float* x_imag, Precision precision, int threads,
                                 float* y_real, float* y_imag) const {
  const VectorView x = {x_real, x_imag};
  const VectorSpan y = {y_real, y_imag};
#if defined(__AVX2__)
  const Kernel kernel = kernel_for(matrix, precision);
  if (kernel != Kernel::points && fits_fixed_point(x, matrix.cols)) {
    switch (kernel) {
      case Kernel::turns: return multiply_turns(matrix, x, threads, y);
      case Kernel::rings: return multiply_rings(matrix, x, threads, y);
      case Kernel::trellis: return multiply_trellis(matrix, x, threads, y);
      default: return multiply_by_tables(matrix, x, precision, threads, y);
    }
  }
#else
  static_cast<void>(precision);  // portable code knows one
#endif
  multiply_points(matrix, x, threads, y);
}

}  // namespace llava_fa::cpu

// CPU side of the packed product: which kernel multiplies codes with one vector or with many, and
// complex rows to rows of the real Fourier basis, for codes that no other kernel takes.
//
// With H_l, l = 0 .. n/2, the half spectrum of the activations, columns l and n - l of a complex
// row combine to
//   Re y += Re(a + b)/sqrt2 · Re H_l + Im(a - b)/sqrt2 · Im H_l
//   Im y += Im(a + b)/sqrt2 · Re H_l - Re(a - b)/sqrt2 · Im H_l,   a = Ã[k, l], b = Ã[k, n - l],
// and the self-conjugate columns l = 0 and l = n/2 enter once.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "coded_product.hpp"
#include "llava_fa/spectrum.hpp"
#include "parallel.hpp"
#include "points.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRowsPerItem = 8;
constexpr double kNanosecondsPerEntry = 1.0;
constexpr double kNanosecondsPerPoint = 1.5;
constexpr double kNanosecondsPerProduct = 0.12;  // of a point with an activation

// out[l] = factor (values[l] + sign values[n - l]), 0 < l < n/2.
void fold(const float* __restrict values, Index n, float factor, float sign,
          float* __restrict out) {
  for (Index l = 1; 2 * l < n; ++l) out[l] = factor * (values[l] + sign * values[n - l]);
}

// One row as multipliers of the real parts of H, then of its imaginary parts: one row for Re y and
// one for Im y. Im H is zero where l is its own mirror, and so is its multiplier.
void fold_row(const float* re, const float* im, Index n, float* real_row, float* imag_row) {
  const Index imag_start = half_rows(n);
  real_row[0] = re[0];
  imag_row[0] = im[0];
  real_row[imag_start] = imag_row[imag_start] = 0.0f;
  fold(re, n, kHalfSqrt, 1.0f, real_row);
  fold(im, n, kHalfSqrt, 1.0f, imag_row);
  fold(im, n, kHalfSqrt, -1.0f, real_row + imag_start);
  fold(re, n, -kHalfSqrt, -1.0f, imag_row + imag_start);
  if (n % 2 == 0) {
    real_row[n / 2] = re[n / 2];
    imag_row[n / 2] = im[n / 2];
    real_row[imag_start + n / 2] = imag_row[imag_start + n / 2] = 0.0f;
  }
}

enum class Kernel { points, tables, turns, rings, trellis };

Kernel kernel_for([[maybe_unused]] const CodedMatrix& matrix,
                  [[maybe_unused]] Precision precision) {
#if defined(LLAVA_FA_HAS_REGISTERS)
  if (precision == Precision::half && turn_products_apply(matrix)) return Kernel::turns;
  if (table_products_apply(matrix)) return Kernel::tables;
  if (matrix.trellis != nullptr) return Kernel::trellis;
  if (ring_products_apply(matrix)) return Kernel::rings;
#endif
  return Kernel::points;
}

// Of products with one vector. Steps of fixed point that hold for sums over 16 columns are too
// coarse for those over fewer.
Precision precision_for(const CodedMatrix& matrix, Precision asked) {
  constexpr Index kFewestColumns = 16;
  const bool single = asked == Precision::single || matrix.cols < kFewestColumns;
  return single ? Precision::single : Precision::half;
}

#if defined(LLAVA_FA_HAS_REGISTERS)
// Not so if an entry is not finite, or products would leave the range of float32.
bool fits_fixed_point(VectorView x, Index count) {
  constexpr Index kPartials = 16;  // of entries that lie side by side, for vectors
  float largest[kPartials] = {}, sum[kPartials] = {};  // sums show NaN, which maxima pass over
  const auto add = [&](Index l, Index partial) {
    const float real = std::fabs(x.real[l]), imag = std::fabs(x.imag[l]);
    const float larger = real > imag ? real : imag;
    largest[partial] = larger > largest[partial] ? larger : largest[partial];
    sum[partial] += real + imag;
  };
  Index l = 0;
  for (; l + kPartials <= count; l += kPartials) {
    for (Index partial = 0; partial < kPartials; ++partial) add(l + partial, partial);
  }
  for (; l < count; ++l) add(l, 0);
  const float most = *std::ranges::max_element(largest);
  return std::isfinite(std::accumulate(std::begin(sum), std::end(sum), 0.0f)) &&
         most <= kMostLargest && (most == 0.0f || most >= kLeastLargest);
}
#endif

// Complex rows that are decoded at a time: equal shares, of as many as make up for what a product
// with all activations prepares, but at least eight for threads. Depends on the matrix alone, as
// sums do on it.
Index decoded_rows(Index rows) {
  constexpr Index kFewestShares = 8, kFewestRows = 32, kMostRows = 288;
  const Index shares = std::max(kFewestShares, ceil_div(rows, kMostRows));
  return std::min(rows, std::max(kFewestRows, ceil_div(rows, shares)));
}

// Rows of a coded matrix as panels like those of fold_rows, and room for their products.
class DecodedProduct {
 public:
  DecodedProduct(const CodedMatrix& matrix, Index most_rows, Index batch)
      : matrix_(matrix),
        indexes_(matrix),
        row_(2 * matrix.cols),
        panel_(2 * most_rows * 2 * half_rows(matrix.cols)),
        result_(2 * most_rows * batch) {}

  // Valid until the next call.
  const float* folded(Index first, Index rows) {
    const Index n = matrix_.cols, width = 2 * half_rows(n);
    float *re = row_.data(), *im = row_.data() + n, *panel = panel_.data();
    for (Index k = 0; k < rows; ++k) {
      const float scale = half_to_float(matrix_.row_scale[first + k]);
      decode_points(indexes_.of_row(first + k), n, point_pairs(matrix_), scale, re, im);
      fold_row(re, im, n, panel + k * width, panel + (rows + k) * width);
    }
    return panel;
  }
  float* result() { return result_.data(); }

 private:
  const CodedMatrix& matrix_;
  PointIndexes indexes_;
  FloatBuffer row_, panel_, result_;
};

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

void CpuBackend::multiply_half_spectra(const CodedMatrix& matrix, const ComplexMatrix& half,
                                       [[maybe_unused]] Precision precision, int threads,
                                       ComplexMatrix& y) const {
#if defined(LLAVA_FA_HAS_REGISTERS)
  if (blocks_apply(matrix)) return multiply_blocks(matrix, half, precision, threads, y);
#endif
  const Index n = matrix.cols, width = 2 * half.rows(), batch = half.cols();
  const Index most_rows = decoded_rows(matrix.rows), items = ceil_div(matrix.rows, most_rows);
  const double nanoseconds = kNanosecondsPerPoint + kNanosecondsPerProduct * double(batch);
  const int team = step_threads(threads, nanoseconds * double(matrix.rows) * double(n));
  parallel_for(
      items, static_cast<int>(std::min<Index>(team, items)),  // each of which takes memory
      [&] { return DecodedProduct(matrix, most_rows, batch); },
      [&](Index item, DecodedProduct& product) {
        const Index first = item * most_rows, rows = std::min(most_rows, matrix.rows - first);
        const float* panel = product.folded(first, rows);
        // Both planes at once, as every product arranges the activations anew.
        multiply_panel(panel, 2 * rows, width, half.real(), batch, 1, product.result());
        std::copy_n(product.result(), rows * batch, y.real() + first * batch);
        std::copy_n(product.result() + rows * batch, rows * batch, y.imag() + first * batch);
      });
}

Index CpuBackend::most_vectors(const CodedMatrix& matrix, Precision asked) const {
  const Precision precision = precision_for(matrix, asked);
  const bool half = precision == Precision::half;
  switch (kernel_for(matrix, precision)) {
    case Kernel::tables: return matrix.code_bits() > 4 ? 2 : half ? 10 : 7;
    case Kernel::turns: return 5;
    case Kernel::rings: return half ? 4 : 2;
    case Kernel::trellis: return half ? 3 : 2;
    case Kernel::points: break;
  }
  return 4;
}

void CpuBackend::multiply_vector(const CodedMatrix& matrix, const float* x_real,
                                 const float* x_imag, Precision asked, int threads, float* y_real,
                                 float* y_imag) const {
  const VectorView x = {x_real, x_imag};
  const VectorSpan y = {y_real, y_imag};
#if defined(LLAVA_FA_HAS_REGISTERS)
  const Precision precision = precision_for(matrix, asked);
  const Kernel kernel = kernel_for(matrix, precision);
  if (kernel != Kernel::points && fits_fixed_point(x, matrix.cols)) {
    switch (kernel) {
      case Kernel::turns: return multiply_turns(matrix, x, threads, y);
      case Kernel::rings: return multiply_rings(matrix, x, precision, threads, y);
      case Kernel::trellis: return multiply_trellis(matrix, x, precision, threads, y);
      default: return multiply_by_tables(matrix, x, precision, threads, y);
    }
  }
#else
  static_cast<void>(asked);  // portable code knows one
#endif
  multiply_points(matrix, x, threads, y);
}

}  // namespace llava_fa::cpu

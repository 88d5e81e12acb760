// CPU elementwise passes over complex planes.
#include <algorithm>
#include <vector>

#include "backend.hpp"
#include "parallel.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRowsPerItem = 16;
constexpr Index kEnergyRows = 64;  // rows whose column sums are kept apart, then added in order
constexpr double kNanosecondsPerEntry = 1.0;

// Double-precision sum of weight * (re^2 + im^2); several partial sums let the loop vectorize.
double row_energy(const float* re, const float* im, const float* weight, Index count) {
  constexpr Index kPartials = 8;
  double partial[kPartials] = {};
  for (Index l = 0; l < count; ++l) {
    const double x = re[l], y = im[l];
    const double w = weight ? weight[l] : 1.0f;
    partial[l % kPartials] += w * (x * x + y * y);
  }
  double total = 0;
  for (double p : partial) total += p;
  return total;
}

// out = all * factors * values; factors may be null, for ones.
void scale(const float* values, Index count, float all, const float* factors, float* out) {
  for (Index i = 0; i < count; ++i) out[i] = values[i] * all;
  if (factors == nullptr) return;
  for (Index i = 0; i < count; ++i) out[i] *= factors[i];
}

}  // namespace

void CpuBackend::subtract_from(const ComplexMatrix& from, const float* column_factor, int threads,
                               ComplexMatrix& inout) const {
  const Index cols = from.cols(), rows = 2 * from.rows();  // both planes
  const int team = worthwhile_threads(threads, kNanosecondsPerEntry * rows * cols);
  parallel_for(ceil_div(rows, kRowsPerItem), team, [&](Index item) {
    const Index end = std::min(rows, (item + 1) * kRowsPerItem);
    for (Index k = item * kRowsPerItem; k < end; ++k) {
      const float* a = from.real() + k * cols;
      float* b = inout.real() + k * cols;
      if (column_factor) {
        for (Index l = 0; l < cols; ++l) b[l] = (a[l] - b[l]) * column_factor[l];
      } else {
        for (Index l = 0; l < cols; ++l) b[l] = a[l] - b[l];
      }
    }
  });
}

void CpuBackend::transpose(const MatrixView& in, const float* row_factor, const float* col_factor,
                           int threads, float* out) const {
  const auto factor = [](const float* factors, Index i) { return factors ? factors[i] : 1.0f; };
  if (in.rows == 1) return scale(in.data, in.cols, factor(row_factor, 0), col_factor, out);
  if (in.cols == 1 && in.row_stride == 1) {
    return scale(in.data, in.rows, factor(col_factor, 0), row_factor, out);
  }
  // Whole cache lines there and back, by way of a tile: rows are often as far apart as makes their
  // lines drive each other out of the cache.
  constexpr Index kTileRows = 64, kTileCols = 16;
  const double entries = static_cast<double>(in.rows) * static_cast<double>(in.cols);
  parallel_for(ceil_div(in.rows, kTileRows), step_threads(threads, entries), [&](Index item) {
    const Index begin = item * kTileRows, rows = std::min(kTileRows, in.rows - begin);
    float tile[kTileCols][kTileRows];
    for (Index j0 = 0; j0 < in.cols; j0 += kTileCols) {
      const Index cols = std::min(kTileCols, in.cols - j0);
      for (Index i = 0; i < rows; ++i) {
        const float* row = in.row(begin + i) + j0;
        for (Index j = 0; j < cols; ++j) tile[j][i] = row[j] * factor(row_factor, begin + i);
      }
      for (Index j = 0; j < cols; ++j) {
        const float col = factor(col_factor, j0 + j);
        float* column = out + (j0 + j) * in.rows + begin;
        for (Index i = 0; i < rows; ++i) column[i] = tile[j][i] * col;
      }
    }
  });
}

void CpuBackend::channel_energies(const MatrixView& values, const float* row_multiplier,
                                  const float* col_multiplier, int threads, std::span<double> rows,
                                  std::span<double> cols) const {
  const Index items = ceil_div(values.rows, kEnergyRows), n = values.cols;
  std::vector<double> partial(static_cast<std::size_t>(items * n), 0.0);
  const int team = worthwhile_threads(threads, kNanosecondsPerEntry * values.rows * n);
  parallel_for(items, team, [&](Index item) {
    double* sums = partial.data() + item * n;
    const Index end = std::min(values.rows, (item + 1) * kEnergyRows);
    for (Index i = item * kEnergyRows; i < end; ++i) {
      const float* row = values.row(i);
      const double r = row_multiplier ? row_multiplier[i] : 1.0f;
      constexpr Index kPartials = 8;
      double total[kPartials] = {};
      for (Index j = 0; j < n; ++j) {
        const double value = r * (col_multiplier ? col_multiplier[j] : 1.0f) * row[j];
        sums[j] += value * value;
        total[j % kPartials] += value * value;
      }
      rows[i] = 0;
      for (const double t : total) rows[i] += t;
    }
  });
  std::fill(cols.begin(), cols.end(), 0.0);
  for (Index item = 0; item < items; ++item) {
    for (Index j = 0; j < n; ++j) cols[j] += partial[item * n + j];
  }
}

void CpuBackend::row_energies(const ComplexMatrix& matrix, const float* column_weight, int threads,
                              std::span<double> energies) const {
  const int team = worthwhile_threads(threads, kNanosecondsPerEntry * matrix.count());
  parallel_for(ceil_div(matrix.rows(), kRowsPerItem), team, [&](Index item) {
    const Index end = std::min(matrix.rows(), (item + 1) * kRowsPerItem);
    for (Index k = item * kRowsPerItem; k < end; ++k) {
      energies[k] = row_energy(matrix.real() + k * matrix.cols(), matrix.imag() + k * matrix.cols(),
                               column_weight, matrix.cols());
    }
  });
}

}  // namespace llava_fa::cpu

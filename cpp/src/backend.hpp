// Internal contract: what a backend owes to the stages. The stages check arguments and hold the
// algorithms; a backend supplies these kernels. One CPU backend exists per instruction-set variant,
// each built from the same files in cpu/ into a shared object of its own.
//
// Every kernel splits its work into items of fixed size, so that results do not depend on the
// number of threads. Outputs are allocated by the caller unless said otherwise.
#pragma once

#include <cstdint>
#include <span>

#include "llava_fa/constellation.hpp"
#include "llava_fa/polar_codec.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

class Backend {
 public:
  virtual ~Backend() = default;

  // --- spectrum (cpu/spectrum.cpp). Unitary, Parseval-weighted; see llava_fa/spectrum.hpp.
  // DFT over rows of a real (length, batch) matrix, kept rows only: out (half_rows(length), batch).
  // Multipliers have length `length` and `batch`, or are null.
  virtual void forward_over_rows(const MatrixView& values, const float* row_multiplier,
                                 const float* col_multiplier, int threads,
                                 ComplexMatrix& out) const = 0;
  // Inverse of forward_over_rows into (length, batch), then multipliers.
  virtual void inverse_over_rows(const ComplexMatrix& spectrum, Index length,
                                 const float* row_multiplier, const float* col_multiplier,
                                 int threads, float* out) const = 0;
  // Unitary complex DFT (or its inverse) of every row, in place.
  virtual void transform_rows(ComplexMatrix& spectrum, bool inverse, int threads) const = 0;

  // --- matrix products (cpu/linalg.cpp)
  // left (p, q) · right (q, r), and leftᴴ (q, p) · right (p, r).
  virtual ComplexMatrix multiply(const ComplexMatrix& left, const ComplexMatrix& right,
                                 int threads) const = 0;
  virtual ComplexMatrix multiply_adjoint(const ComplexMatrix& left, const ComplexMatrix& right,
                                         int threads) const = 0;
  // out = from - transpose(left) · right, with left (rank, rows) and right (rank, cols); `out` may
  // be `from`.
  virtual void subtract_low_rank(const ComplexMatrix& from, const ComplexMatrix& left,
                                 const ComplexMatrix& right, int threads,
                                 ComplexMatrix& out) const = 0;
  // out (rows, batch) = panel (rows, n) · activations (n, batch), all real and row-major.
  virtual void multiply_panel(const float* panel, Index rows, Index n, const float* activations,
                              Index batch, int threads, float* out) const = 0;
  // --- decompositions in double precision (cpu/decomposition.cpp)
  // Replaces `matrix` (rows >= cols) by an orthonormal basis Q of its columns and returns the
  // triangle R (cols, cols) of matrix = Q R.
  virtual ComplexMatrix orthonormalize(ComplexMatrix& matrix) const = 0;
  // Thin SVD, k = min(rows, cols): left (rows, k), values (k), right (k, cols).
  virtual void full_svd(const ComplexMatrix& matrix, ComplexMatrix& left, std::span<float> values,
                        ComplexMatrix& right) const = 0;

  // --- elementwise (cpu/elementwise.cpp)
  // inout = (from - inout) · diag(column_factor); the factor may be null.
  virtual void subtract_from(const ComplexMatrix& from, const float* column_factor, int threads,
                             ComplexMatrix& inout) const = 0;
  // Sums of squares of a real matrix with multipliers (null: ones), per row and per column.
  virtual void channel_energies(const MatrixView& values, const float* row_multiplier,
                                const float* col_multiplier, int threads, std::span<double> rows,
                                std::span<double> cols) const = 0;
  // Per row: sum of |entry|^2 · column_weight in double precision; the weight may be null.
  virtual void row_energies(const ComplexMatrix& matrix, const float* column_weight, int threads,
                            std::span<double> energies) const = 0;

  // --- random numbers (cpu/random.cpp): standard circular complex Gaussian entries by position
  virtual void fill_gaussian(std::uint64_t seed, int threads, ComplexMatrix& out) const = 0;

  // --- polar codec (cpu/polar_codec.cpp); semantics in llava_fa/polar_codec.hpp
  // Encodes all rows; `row_errors` receives each row's weighted squared error.
  virtual void encode_rows(ComplexMatrix& values, const Constellation& points,
                           const float* column_weight, bool write_back, int threads,
                           PolarCodes& codes, std::span<double> row_errors) const = 0;
  virtual void decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index cols,
                           const Constellation& points, Index row_count, int threads, float* real,
                           float* imag) const = 0;

  // --- matmul (cpu/matmul.cpp)
  // Complex rows (rows, n) to the real Fourier basis of the input axis: panel (2 rows, n), first
  // all rows that give Re y, then all that give Im y (docs/method.md, "Run time").
  virtual void fold_rows(const float* real, const float* imag, Index rows, Index n, int threads,
                         float* panel) const = 0;
};

// The CPU backend of the best instruction-set variant, loaded at first use.
const Backend& cpu_backend();

}  // namespace llava_fa

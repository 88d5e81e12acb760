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
#include "llava_fa/feedback.hpp"
#include "llava_fa/matmul.hpp"
#include "llava_fa/polar_codec.hpp"
#include "llava_fa/trellis.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

// How encode_columns codes: exactly one of the two codes, and how errors count.
struct ColumnCoding {
  const Constellation* constellation = nullptr;
  const Trellis* trellis = nullptr;
  const FeedbackFilter* filter = nullptr;  // null: errors of columns are independent
  const float* column_weight = nullptr;    // (cols) squared weights without a filter, or null
  bool write_back = false;                 // replace the values by what the codes decode to
  float gain = 1.0f;  // codes are chosen at the row's own size and decoded this much larger
  bool refit = true;  // row scales by least squares in the end
};

// Codes of a matrix (rows, cols) as they are stored, with exactly one of the two codes.
struct CodedMatrix {
  const std::uint8_t* packed = nullptr;
  const std::uint16_t* row_scale = nullptr;
  Index rows = 0;
  Index cols = 0;
  const Constellation* constellation = nullptr;
  const Trellis* trellis = nullptr;

  int code_bits() const { return trellis ? trellis->code_bits : constellation->code_bits; }
};

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
  // out (cols, rows) = diag(col_factor) · inᵀ · diag(row_factor); factors may be null.
  virtual void transpose(const MatrixView& in, const float* row_factor, const float* col_factor,
                         int threads, float* out) const = 0;
  // Sums of squares of a real matrix with multipliers (null: ones), per row and per column.
  virtual void channel_energies(const MatrixView& values, const float* row_multiplier,
                                const float* col_multiplier, int threads, std::span<double> rows,
                                std::span<double> cols) const = 0;
  // Per row: sum of |entry|^2 · column_weight in double precision; the weight may be null.
  virtual void row_energies(const ComplexMatrix& matrix, const float* column_weight, int threads,
                            std::span<double> energies) const = 0;

  // --- random numbers (cpu/random.cpp): standard circular complex Gaussian entries by position
  // in the columns from first_column on; the others are left as they are
  virtual void fill_gaussian(std::uint64_t seed, Index first_column, int threads,
                             ComplexMatrix& out) const = 0;

  // --- polar codec (cpu/polar_codec.cpp); semantics in llava_fa/polar_codec.hpp
  // Encodes all rows; `row_errors` receives each row's weighted squared error.
  virtual void encode_rows(ComplexMatrix& values, const Constellation& points,
                           const float* column_weight, bool write_back, int threads,
                           PolarCodes& codes, std::span<double> row_errors) const = 0;
  virtual void decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                           Index cols, const Constellation& points, Index first_row,
                           Index row_count, int threads, float* real, float* imag) const = 0;

  // --- trellis (cpu/trellis.cpp); semantics in llava_fa/trellis.hpp
  virtual void decode_trellis_rows(const std::uint8_t* packed, const std::uint16_t* row_scale,
                                   Index rows, Index cols, const Trellis& code, Index first_row,
                                   Index row_count, int threads, float* real,
                                   float* imag) const = 0;

  // --- feedback (cpu/feedback.cpp, cpu/feedback_filter.cpp); llava_fa/feedback.hpp
  // Factors Σ̃ + damping · I from the kept rows (n/2 + 1, n) of F Σ Fᵀ with Parseval weights, for a
  // Σ with mean diagonal one. Returns false if that is not positive definite.
  virtual bool factor_second_moment(const ComplexMatrix& half, double damping, int threads,
                                    FeedbackFilter& filter) const = 0;
  // rows (r, n) ← rows · R, and rows · R⁻¹.
  virtual void apply_filter(const FeedbackFilter& filter, int threads,
                            ComplexMatrix& rows) const = 0;
  virtual void solve_filter(const FeedbackFilter& filter, int threads,
                            ComplexMatrix& rows) const = 0;
  // Codes all columns in turn, each with what the filter feeds back of the errors before it; refits
  // row scales. Per row: its cost, and the cost of coding nothing.
  virtual void encode_columns(ComplexMatrix& values, const ColumnCoding& coding, int threads,
                              PolarCodes& codes, std::span<double> row_errors,
                              std::span<double> row_energies) const = 0;

  // --- matmul (cpu/matmul.cpp)
  // Complex rows (rows, n) to multipliers of the planes of a half spectrum (n/2 + 1): panel
  // (2 rows, 2 (n/2 + 1)), first all rows that give Re y, then all that give Im y (docs/method.md,
  // "Run time").
  virtual void fold_rows(const float* real, const float* imag, Index rows, Index n, int threads,
                         float* panel) const = 0;
  // y (rows, batch) = coded matrix · columns whose half spectra (cols / 2 + 1, batch) are given.
  virtual void multiply_half_spectra(const CodedMatrix& matrix, const ComplexMatrix& half,
                                     Precision precision, int threads, ComplexMatrix& y) const = 0;
  // Up to how many vectors multiply_vector for each is faster than multiply_half_spectra.
  virtual Index most_vectors(const CodedMatrix& matrix, Precision precision) const = 0;
  // y[k] = row_scale[k] · sum_l point(k, l) · x[l], complex, x (cols) and y (rows) in planes. x is
  // the spectrum of real values: x[cols - l] is the conjugate of x[l].
  virtual void multiply_vector(const CodedMatrix& matrix, const float* x_real, const float* x_imag,
                               Precision precision, int threads, float* y_real,
                               float* y_imag) const = 0;
};

// The CPU backend of the best instruction-set variant, loaded at first use.
const Backend& cpu_backend();

}  // namespace llava_fa

// Randomized truncated SVD (Halko, Martinsson, Tropp 2011):
//
// 1. Block Y = A Ω, with Ω random or the warm start topped up with random columns.
// 2. Power iterations: Y ← A (Aᴴ Y), orthonormalized before each product.
// 3. Q = basis of Y, Z = Aᴴ Q = Q₂ R, SVD of the small Rᴴ = U S Vᴴ:
//    A ≈ Q (Qᴴ A) = Q Rᴴ Q₂ᴴ = (Q U) S (Q₂ V)ᴴ.
#include "llava_fa/low_rank.hpp"

#include <algorithm>

#include "backend.hpp"
#include "checks.hpp"
#include "llava_fa/runtime.hpp"
#include "low_rank_internal.hpp"

namespace llava_fa {
namespace {

// The adjoint of the first `count` rows in as many columns, in tiles that stay in the cache.
void put_adjoint(const ComplexMatrix& m, Index count, ComplexMatrix& out) {
  constexpr Index kTile = 32;
  for (Index first_row = 0; first_row < count; first_row += kTile) {
    for (Index first_col = 0; first_col < m.cols(); first_col += kTile) {
      for (Index i = first_row; i < std::min(count, first_row + kTile); ++i) {
        for (Index j = first_col; j < std::min(m.cols(), first_col + kTile); ++j) {
          out.real()[j * out.cols() + i] = m.real()[i * m.cols() + j];
          out.imag()[j * out.cols() + i] = -m.imag()[i * m.cols() + j];
        }
      }
    }
  }
}

bool row_is_zero(const ComplexMatrix& m, Index row) {
  const auto is_zero = [&](const float* plane) {
    const float* const first = plane + row * m.cols();
    return std::all_of(first, first + m.cols(), [](float value) { return value == 0.0f; });
  };
  return is_zero(m.real()) && is_zero(m.imag());
}

TruncatedSvd truncate(const ComplexMatrix& left, std::span<const float> values,
                      const ComplexMatrix& right, Index rank) {
  TruncatedSvd out;
  out.left_vectors = leading_columns(left, rank);
  out.singular_values.assign(values.begin(), values.begin() + rank);
  out.right_vectors = ComplexMatrix(rank, right.cols());
  std::copy_n(right.real(), rank * right.cols(), out.right_vectors.real());
  std::copy_n(right.imag(), rank * right.cols(), out.right_vectors.imag());
  return out;
}

}  // namespace

void check_rank(Index rank, Index rows, Index cols) {
  const Index largest = std::min(rows, cols);
  require_argument(rank >= 1 && rank <= largest, "rank is ", rank, ", expected 1 to ", largest,
                   " for a complex matrix of shape (", rows, ", ", cols, ")");
}

void check_subspace(int power_iterations, Index oversampling, const ComplexMatrix* warm_start,
                    Index cols) {
  require_argument(power_iterations >= 0 && oversampling >= 0,
                   "power_iterations and oversampling must not be negative, received ",
                   power_iterations, " and ", oversampling);
  require_argument(!warm_start || warm_start->cols() == cols,
                   "warm start has another number of columns than the matrix");
}

ComplexMatrix adjoint(const ComplexMatrix& m) {
  ComplexMatrix out(m.cols(), m.rows());
  put_adjoint(m, m.rows(), out);
  return out;
}

ComplexMatrix leading_columns(const ComplexMatrix& m, Index count) {
  ComplexMatrix out(m.rows(), count);
  for (Index i = 0; i < m.rows(); ++i) {
    std::copy_n(m.real() + i * m.cols(), count, out.real() + i * count);
    std::copy_n(m.imag() + i * m.cols(), count, out.imag() + i * count);
  }
  return out;
}

ComplexMatrix starting_block(Index rows, Index block, std::uint64_t seed,
                             const ComplexMatrix* warm_start) {
  ComplexMatrix start(rows, block);
  Index warm = 0;
  if (warm_start) {
    while (warm < std::min(block, warm_start->rows()) && !row_is_zero(*warm_start, warm)) ++warm;
    put_adjoint(*warm_start, warm, start);
  }
  cpu_backend().fill_gaussian(seed, warm, num_threads(), start);
  return start;
}

TruncatedSvd randomized_svd(const ComplexMatrix& matrix, const SvdOptions& options,
                            const ComplexMatrix* warm_start) {
  check_rank(options.rank, matrix.rows(), matrix.cols());
  const Index oversampling = options.oversampling.value_or(default_oversampling(options.rank));
  check_subspace(options.power_iterations, oversampling, warm_start, matrix.cols());
  const Backend& backend = cpu_backend();
  const int threads = num_threads();
  const Index block = subspace_columns(options.rank, oversampling, matrix.rows(), matrix.cols());

  ComplexMatrix basis = backend.multiply(
      matrix, starting_block(matrix.cols(), block, options.seed, warm_start), threads);
  for (int pass = 0; pass < options.power_iterations; ++pass) {
    backend.orthonormalize(basis);
    ComplexMatrix co_basis = backend.multiply_adjoint(matrix, basis, threads);
    backend.orthonormalize(co_basis);
    basis = backend.multiply(matrix, co_basis, threads);
  }
  backend.orthonormalize(basis);
  ComplexMatrix co_basis = backend.multiply_adjoint(matrix, basis, threads);
  const ComplexMatrix triangle = backend.orthonormalize(co_basis);

  ComplexMatrix small_left, small_right;
  std::vector<float> values(block);
  backend.full_svd(adjoint(triangle), small_left, values, small_right);
  const ComplexMatrix left = backend.multiply(basis, small_left, threads);
  // (Q₂ V)ᴴ = Vᴴ Q₂ᴴ
  const ComplexMatrix right = backend.multiply(small_right, adjoint(co_basis), threads);
  return truncate(left, values, right, options.rank);
}

TruncatedSvd exact_svd(const ComplexMatrix& matrix, Index rank) {
  check_rank(rank, matrix.rows(), matrix.cols());
  ComplexMatrix left, right;
  std::vector<float> values(std::min(matrix.rows(), matrix.cols()));
  cpu_backend().full_svd(matrix, left, values, right);
  return truncate(left, values, right, rank);
}

}  // namespace llava_fa

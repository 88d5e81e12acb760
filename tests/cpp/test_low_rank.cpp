// Truncated SVD: optimal error against the exact path, orthonormality, warm start, degenerate
// input.
#include <doctest/doctest.h>

#include <algorithm>

#include "llava_fa/error.hpp"
#include "llava_fa/low_rank.hpp"
#include "llava_fa/runtime.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

ComplexMatrix adjoint(const ComplexMatrix& m) {
  ComplexMatrix out(m.cols(), m.rows());
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      out.real()[j * m.rows() + i] = m.real()[i * m.cols() + j];
      out.imag()[j * m.rows() + i] = -m.imag()[i * m.cols() + j];
    }
  }
  return out;
}

double residual(const ComplexMatrix& matrix, const TruncatedSvd& svd) {
  ComplexMatrix scaled = svd.left_vectors.clone();
  const Index rank = scaled.cols();
  for (Index i = 0; i < 2 * scaled.count(); ++i) {
    scaled.real()[i] *= svd.singular_values[i % rank];
  }
  return reference::distance(matrix, reference::product(scaled, svd.right_vectors));
}

double distance_from_identity(const ComplexMatrix& gram) {
  double worst = 0;
  for (Index i = 0; i < gram.rows(); ++i) {
    for (Index j = 0; j < gram.cols(); ++j) {
      worst = std::max(worst, std::abs(reference::entry(gram, i, j) - double(i == j)));
    }
  }
  return worst;
}

// Gaussian matrix whose columns decay: singular values fall geometrically, roughly.
ComplexMatrix decaying(Index rows, Index cols) {
  ComplexMatrix out = reference::complex_gaussian(rows, cols, 7);
  for (Index i = 0; i < 2 * out.count(); ++i) {
    out.real()[i] *= static_cast<float>(std::pow(0.85, double(i % cols)));
  }
  return out;
}

}  // namespace

TEST_CASE("randomized error is within 1 % of the optimum for flat spectra, 0.1 % for decaying") {
  // In the squared error, which is the stricter reading: its root is within half of that. The large
  // matrix is hard: many columns, and a rank that is a small share of them.
  const ComplexMatrix flat = reference::complex_gaussian(90, 70, 8), steep = decaying(90, 70),
                      large = reference::complex_gaussian(160, 300, 8);
  struct Case {
    const ComplexMatrix& matrix;
    double tolerance;
  };
  for (const Case& c : {Case{flat, 0.01}, Case{steep, 0.001}, Case{large, 0.01}}) {
    const TruncatedSvd exact = exact_svd(c.matrix, std::min(c.matrix.rows(), c.matrix.cols()));
    for (const Index rank : {1, 5, 20, 35}) {
      double optimum = 0;
      for (std::size_t i = rank; i < exact.singular_values.size(); ++i) {
        optimum += std::pow(double(exact.singular_values[i]), 2);
      }
      for (const std::uint64_t seed : {0, 1, 2}) {
        CAPTURE(c.matrix.rows());
        CAPTURE(rank);
        CAPTURE(seed);
        SvdOptions options;
        options.rank = rank;
        options.seed = seed;
        const double error = std::pow(residual(c.matrix, randomized_svd(c.matrix, options)), 2);
        CHECK(error <= (1 + c.tolerance) * optimum);
      }
    }
  }
}

TEST_CASE("the exact path leaves exactly the tail of singular values, tall or wide") {
  for (const auto& matrix :
       {reference::complex_gaussian(20, 33, 9), reference::complex_gaussian(33, 20, 9)}) {
    const TruncatedSvd all = exact_svd(matrix, 20);
    CHECK(residual(matrix, all) <= 1e-5 * reference::norm(matrix));
    double tail = 0;
    for (Index i = 8; i < 20; ++i) tail += std::pow(double(all.singular_values[i]), 2);
    CHECK(residual(matrix, exact_svd(matrix, 8)) == doctest::Approx(std::sqrt(tail)).epsilon(1e-4));
    CHECK(std::is_sorted(all.singular_values.rbegin(), all.singular_values.rend()));
  }
}

TEST_CASE("vectors are orthonormal, also for rank-deficient and zero matrices") {
  const ComplexMatrix thin = reference::complex_gaussian(30, 3, 10);
  const ComplexMatrix deficient = reference::product(thin, reference::complex_gaussian(3, 25, 11));
  ComplexMatrix zero(30, 25);
  std::fill_n(zero.real(), 2 * zero.count(), 0.0f);
  for (const ComplexMatrix* matrix : {&deficient, static_cast<const ComplexMatrix*>(&zero)}) {
    SvdOptions options;
    options.rank = 6;
    for (const TruncatedSvd& svd : {randomized_svd(*matrix, options), exact_svd(*matrix, 6)}) {
      CHECK(residual(*matrix, svd) <= 1e-5 * reference::norm(*matrix) + 1e-12);
      CHECK(distance_from_identity(
                reference::product(adjoint(svd.left_vectors), svd.left_vectors)) < 1e-5);
      CHECK(distance_from_identity(
                reference::product(svd.right_vectors, adjoint(svd.right_vectors))) < 1e-5);
    }
  }
}

TEST_CASE("a warm start from the answer needs no power iterations") {
  const ComplexMatrix matrix = reference::complex_gaussian(80, 60, 12);
  const TruncatedSvd exact = exact_svd(matrix, 10);
  SvdOptions options;
  options.rank = 10;
  options.power_iterations = 0;
  const double cold = residual(matrix, randomized_svd(matrix, options));
  const double warm = residual(matrix, randomized_svd(matrix, options, &exact.right_vectors));
  CHECK(warm <= 1.0001 * residual(matrix, exact));
  CHECK(warm < cold);
}

TEST_CASE("the result depends on the seed alone") {
  // Large enough that the work is really shared out (worthwhile_threads).
  const ComplexMatrix matrix = reference::complex_gaussian(1000, 700, 13);
  SvdOptions options;
  options.rank = 4;
  set_num_threads(1);
  const TruncatedSvd one = randomized_svd(matrix, options);
  set_num_threads(4);
  const TruncatedSvd four = randomized_svd(matrix, options);
  set_num_threads(0);
  CHECK(reference::distance(one.left_vectors, four.left_vectors) == 0.0);
  CHECK(one.singular_values == four.singular_values);
}

TEST_CASE("ranks out of range are refused") {
  const ComplexMatrix matrix = reference::complex_gaussian(5, 4);
  CHECK_THROWS_WITH_AS(exact_svd(matrix, 5),
                       "rank is 5, expected 1 to 4 for a complex matrix of shape (5, 4)", Error);
  CHECK_THROWS_AS(exact_svd(matrix, 0), Error);
}

// Joint low rank and codes: monotone, never above the sequential solution, exact bookkeeping.
#include <doctest/doctest.h>

#include "llava_fa/error.hpp"
#include "llava_fa/joint_solver.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

ComplexMatrix with_low_rank(Index rows, Index cols, Index rank, float strength) {
  ComplexMatrix out = reference::complex_gaussian(rows, cols, 41);
  const ComplexMatrix left = reference::complex_gaussian(rows, rank, 42);
  const ComplexMatrix part = reference::product(left, reference::complex_gaussian(rank, cols, 43));
  for (Index i = 0; i < 2 * out.count(); ++i) out.real()[i] += strength * part.real()[i];
  return out;
}

ComplexMatrix transposed(const ComplexMatrix& m) {
  ComplexMatrix out(m.cols(), m.rows());
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      out.real()[j * m.rows() + i] = m.real()[i * m.cols() + j];
      out.imag()[j * m.rows() + i] = m.imag()[i * m.cols() + j];
    }
  }
  return out;
}

// ||(A - Q - L1 L2) D||^2 / ||A D||^2 from the stored parts alone.
double objective_of(const ComplexMatrix& spectrum, const JointSolution& solution,
                    const JointOptions& options, const std::vector<float>& weight = {}) {
  const ComplexMatrix codes =
      polar_decode(solution.codes, constellation(options.codec, options.code_bits));
  ComplexMatrix low_rank(spectrum.rows(), spectrum.cols());
  std::fill_n(low_rank.real(), 2 * low_rank.count(), 0.0f);
  if (options.rank > 0) {
    low_rank = reference::product(transposed(solution.left.decoded), solution.right.decoded);
  }
  double error = 0, energy = 0;
  for (Index i = 0; i < spectrum.rows(); ++i) {
    for (Index j = 0; j < spectrum.cols(); ++j) {
      const double d = weight.empty() ? 1.0 : weight[j];
      const auto a = reference::entry(spectrum, i, j);
      const auto rest = a - reference::entry(codes, i, j) - reference::entry(low_rank, i, j);
      error += d * d * std::norm(rest);
      energy += d * d * std::norm(a);
    }
  }
  return error / energy;
}

}  // namespace

TEST_CASE("the objective falls monotonically and is what the stored parts give") {
  const ComplexMatrix spectrum = with_low_rank(40, 60, 3, 0.5f);
  for (const int factor_bits : {6, 8, kFactorBitsFloat16}) {
    for (const Index rank : {0, 1, 4, 16}) {
      CAPTURE(rank);
      JointOptions options;
      options.code_bits = 4;
      options.rank = rank;
      options.factor_bits = factor_bits;
      const JointSolution joint = solve_joint(spectrum, options);
      for (std::size_t i = 1; i < joint.objective.size(); ++i) {
        CHECK(joint.objective[i] < joint.objective[i - 1]);
      }
      CHECK(joint.objective.back() ==
            doctest::Approx(objective_of(spectrum, joint, options)).epsilon(1e-4));
    }
  }
}

TEST_CASE("joint is never worse than sequential") {
  const ComplexMatrix spectrum = with_low_rank(64, 50, 2, 0.3f);
  for (const Index rank : {1, 2, 8, 20}) {
    JointOptions options;
    options.code_bits = 4;
    options.rank = rank;
    const double joint = solve_joint(spectrum, options).objective.back();
    options.max_alternations = 1;
    CHECK(joint <= solve_joint(spectrum, options).objective.front());
  }
}

TEST_CASE("weights lower the weighted objective") {
  const ComplexMatrix spectrum = with_low_rank(40, 30, 4, 1.0f);
  std::vector<float> weight(30, 0.1f);
  for (Index l = 0; l < 5; ++l) weight[l] = 3.0f;
  JointOptions options;
  options.code_bits = 3;
  options.rank = 3;
  const JointSolution plain = solve_joint(spectrum, options);
  const JointSolution weighted = solve_joint(spectrum, options, {weight, nullptr});
  CHECK(objective_of(spectrum, weighted, options, weight) <
        objective_of(spectrum, plain, options, weight));
  CHECK(weighted.objective.back() ==
        doctest::Approx(objective_of(spectrum, weighted, options, weight)).epsilon(1e-4));
}

TEST_CASE("unbiased row scales carry the whole energy of their rows") {
  const ComplexMatrix spectrum = with_low_rank(20, 300, 2, 0.5f);
  const Constellation& points = constellation(Codec::ring, 4);
  for (const Index rank : {0, 3}) {
    JointOptions options;
    options.code_bits = 4;
    options.rank = rank;
    const JointSolution shrunk = solve_joint(spectrum, options);
    options.unbiased = true;
    const JointSolution solution = solve_joint(spectrum, options);
    CHECK(solution.codes.packed == shrunk.codes.packed);
    ComplexMatrix rest = spectrum.clone();
    if (rank > 0) {
      const ComplexMatrix part =
          reference::product(transposed(solution.left.decoded), solution.right.decoded);
      for (Index i = 0; i < 2 * rest.count(); ++i) rest.real()[i] -= part.real()[i];
    }
    const ComplexMatrix decoded = polar_decode(solution.codes, points);
    for (Index k = 0; k < 20; ++k) {
      double carried = 0, energy = 0;
      for (Index l = 0; l < 300; ++l) {
        const auto x = reference::entry(rest, k, l);
        carried += (x * std::conj(reference::entry(decoded, k, l))).real();
        energy += std::norm(x);
      }
      CHECK(carried == doctest::Approx(energy).epsilon(1e-3));  // binary16 scales
    }
  }
}

TEST_CASE("a zero spectrum has a zero solution") {
  ComplexMatrix zero(5, 6);
  std::fill_n(zero.real(), 2 * zero.count(), 0.0f);
  JointOptions options;
  options.rank = 2;
  CHECK(solve_joint(zero, options).objective.back() == 0.0);
}

TEST_CASE("options out of range are refused") {
  const ComplexMatrix spectrum = reference::complex_gaussian(5, 6);
  JointOptions options;
  options.rank = 6;
  CHECK_THROWS_AS(solve_joint(spectrum, options), Error);
  options.rank = 2;
  options.factor_bits = 12;
  CHECK_THROWS_WITH_AS(solve_joint(spectrum, options), "factor_bits is 12, expected 1 to 10, or 16",
                       Error);
  options.factor_bits = 8;
  options.max_alternations = 0;
  CHECK_THROWS_AS(solve_joint(spectrum, options), Error);
}

// Error feedback: the factorization, and the fed-back objective against float64 recursions.
#include "llava_fa/feedback.hpp"

#include <doctest/doctest.h>

#include <limits>

#include "llava_fa/error.hpp"
#include "llava_fa/joint_solver.hpp"
#include "llava_fa/runtime.hpp"
#include "reference.hpp"

using namespace llava_fa;
using reference::Complex;

namespace {

// E[x xᵀ] of `samples` rows whose channels have falling power and a mean.
reference::Dense second_moment(Index n, Index samples, unsigned seed = 81) {
  const reference::Dense x = reference::gaussian(samples, n, seed);
  reference::Dense out{n, n, std::vector<float>(n * n)};
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < n; ++j) {
      double total = 0;
      for (Index s = 0; s < samples; ++s) {
        const double a = (x.at(s, i) + 0.5) / std::sqrt(1.0 + i),
                     b = (x.at(s, j) + 0.5) / std::sqrt(1.0 + j);
        total += a * b;
      }
      out.values[i * n + j] = static_cast<float>(total / samples);
    }
  }
  return out;
}

// conj(F) Σ Fᵀ / mean diagonal, (n, n) row-major.
std::vector<Complex> spectral_moment(const reference::Dense& moment) {
  const Index n = moment.rows;
  std::vector<Complex> half(n * n), out(n * n);
  double trace = 0;
  for (Index j = 0; j < n; ++j) trace += moment.at(j, j);
  for (Index k = 0; k < n; ++k) {
    for (Index j = 0; j < n; ++j) {
      for (Index i = 0; i < n; ++i) {
        half[k * n + j] += std::conj(reference::root(i * k, n)) * double(moment.at(i, j));
      }
    }
  }
  for (Index k = 0; k < n; ++k) {
    for (Index l = 0; l < n; ++l) {
      for (Index j = 0; j < n; ++j) out[k * n + l] += half[k * n + j] * reference::root(j * l, n);
      out[k * n + l] /= trace;  // n from the transforms, trace / n from the mean
    }
  }
  return out;
}

Complex unit_upper(const FeedbackFilter& filter, Index i, Index j) {
  if (i >= j) return i == j ? 1.0 : 0.0;
  const Index b = j / FeedbackFilter::kBlock, c = j % FeedbackFilter::kBlock;
  const Index width = filter.block_width(b);
  const float* row = filter.block(b) + i * 2 * width;
  return {row[c], row[width + c]};
}

// sum over rows of δ (Σ̃ + λ) δᴴ for δ = spectrum - decoded.
double cost(const ComplexMatrix& spectrum, const ComplexMatrix& decoded,
            const std::vector<Complex>& moment, double damping) {
  const Index n = spectrum.cols();
  double total = 0;
  for (Index k = 0; k < spectrum.rows(); ++k) {
    std::vector<Complex> delta(n);
    for (Index l = 0; l < n; ++l) {
      delta[l] = reference::entry(spectrum, k, l) - reference::entry(decoded, k, l);
    }
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {
        const Complex entry = moment[i * n + j] + (i == j ? damping : 0.0);
        total += (delta[i] * entry * std::conj(delta[j])).real();
      }
    }
  }
  return total;
}

ComplexMatrix zeros(Index rows, Index cols) {
  ComplexMatrix out(rows, cols);
  std::fill_n(out.real(), 2 * out.count(), 0.0f);
  return out;
}

}  // namespace

TEST_CASE("R R^H is the damped spectral second moment, for sizes around the block width") {
  for (const Index n : {1, 2, 5, 63, 64, 65, 130, 200}) {
    CAPTURE(n);
    const reference::Dense moment = second_moment(n, n + 10);
    const FeedbackFilter filter = feedback_filter(moment.view());
    CHECK(filter.damping == doctest::Approx(kDamping));
    const std::vector<Complex> expected = spectral_moment(moment);
    double worst = 0;
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {
        Complex total;
        for (Index c = std::max(i, j); c < n; ++c) {
          total += unit_upper(filter, i, c) * double(filter.diagonal[c]) *
                   std::conj(unit_upper(filter, j, c));
        }
        const Complex target = expected[i * n + j] + (i == j ? filter.damping : 0.0);
        worst = std::max(worst, std::abs(total - target));
      }
    }
    CHECK(worst < 2e-5);  // float32, entries up to the largest eigenvalue
  }
}

TEST_CASE("signs and scales of the input act before the transform") {
  const Index n = 20;
  reference::Dense moment = second_moment(n, 40);
  const reference::Dense multiplier = reference::gaussian(1, n, 82);
  const FeedbackFilter with = feedback_filter(moment.view(), multiplier.values);
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < n; ++j) {
      moment.values[i * n + j] *= multiplier.values[i] * multiplier.values[j];
    }
  }
  const FeedbackFilter direct = feedback_filter(moment.view());
  for (Index j = 0; j < n; ++j) {
    CHECK(with.diagonal[j] == doctest::Approx(direct.diagonal[j]).epsilon(1e-4));
  }
}

TEST_CASE("white noise costs under feedback what the undamped moment makes of M^-1") {
  for (const Index n : {40, 130}) {
    CAPTURE(n);
    const reference::Dense moment = second_moment(n, 4 * n);
    const FeedbackFilter filter = feedback_filter(moment.view());
    const std::vector<Complex> exact = spectral_moment(moment);
    double expected = 0;
    for (Index i = 0; i < n; ++i) {
      std::vector<Complex> row(n);  // of M⁻¹, by substitution
      row[i] = 1.0;
      for (Index j = i + 1; j < n; ++j) {
        for (Index k = i; k < j; ++k) row[j] -= row[k] * unit_upper(filter, k, j);
      }
      for (Index j = i; j < n; ++j) {
        for (Index k = i; k < n; ++k) {
          expected += (row[j] * exact[j * n + k] * std::conj(row[k])).real();
        }
      }
    }
    const FedBackNoise found = fed_back_noise(filter);
    CHECK(found.exact == doctest::Approx(expected / n).epsilon(0.05));  // probes of the damping
    CHECK(found.exact < found.damped);
    CHECK(found.damped < 0.7);
  }
}

TEST_CASE("feedback gains nothing on white inputs, and a zero moment counts as white") {
  reference::Dense moment{70, 70, std::vector<float>(70 * 70)};
  CHECK(fed_back_noise(feedback_filter(moment.view())).exact == doctest::Approx(1.0));
  for (Index j = 0; j < 70; ++j) moment.values[j * 70 + j] = 3.0f;
  CHECK(fed_back_noise(feedback_filter(moment.view())).exact == doctest::Approx(1.0).epsilon(1e-3));
}

TEST_CASE("a multiplier of another length is refused") {
  const reference::Dense moment = second_moment(8, 20);
  const std::vector<float> multiplier(7, 1.0f);
  CHECK_THROWS_WITH_AS(feedback_filter(moment.view(), multiplier),
                       doctest::Contains("input_multiplier has length 7, expected 8"), Error);
}

TEST_CASE("the objective is the cost of the decoded error, and feedback lowers it") {
  const Index n = 90;
  const ComplexMatrix spectrum = reference::complex_gaussian(30, n, 83);
  const reference::Dense moment = second_moment(n, 200);
  const FeedbackFilter filter = feedback_filter(moment.view());
  const std::vector<Complex> exact = spectral_moment(moment);
  const double energy = cost(spectrum, zeros(30, n), exact, filter.damping);
  for (const Codec codec : {Codec::ring, Codec::product, Codec::uniform, Codec::trellis}) {
    CAPTURE(codec_name(codec));
    JointOptions options;
    options.codec = codec;
    options.code_bits = 4;
    options.state_bits = 10;
    const auto decoded = [&](const JointSolution& solution) {
      return codec == Codec::trellis
                 ? trellis_decode(solution.codes, options.state_bits)
                 : polar_decode(solution.codes, constellation(codec, options.code_bits));
    };
    const JointSolution fed = solve_joint(spectrum, options, {{}, &filter});
    const double fed_cost = cost(spectrum, decoded(fed), exact, filter.damping);
    CHECK(fed.objective.back() == doctest::Approx(fed_cost / energy).epsilon(1e-3));
    const JointSolution plain = solve_joint(spectrum, options);
    CHECK(fed_cost < 0.8 * cost(spectrum, decoded(plain), exact, filter.damping));
  }
}

TEST_CASE("codes follow the recursion t_j = a_j + sum (a_i - q_i) M_ij in float64") {
  const Index n = 70, rows = 6;
  const ComplexMatrix spectrum = reference::complex_gaussian(rows, n, 84);
  const FeedbackFilter filter = feedback_filter(second_moment(n, 150).view());
  JointOptions options;
  options.code_bits = 4;
  const JointSolution solution = solve_joint(spectrum, options, {{}, &filter});
  const Constellation& points = constellation(Codec::ring, 4);
  int differing = 0;
  for (Index k = 0; k < rows; ++k) {
    const std::vector<std::uint16_t> codes = codes_of_row(solution.codes, k);
    double energy = 0;
    for (Index l = 0; l < n; ++l) energy += std::norm(reference::entry(spectrum, k, l));
    // chosen at the row's own size, decoded 1 / (1 - D) larger
    const double scale = std::sqrt(energy / double(n));
    const double decoded_scale = scale / (1.0 - points.design_distortion);
    std::vector<Complex> error(n);
    for (Index j = 0; j < n; ++j) {
      Complex target = reference::entry(spectrum, k, j);
      for (Index i = 0; i < j; ++i) target += error[i] * unit_upper(filter, i, j);
      const auto distance = [&](std::size_t c) {
        return std::abs(target - scale * Complex(points.point_real[c], points.point_imag[c]));
      };
      std::size_t best = 0;
      for (std::size_t c = 1; c < points.point_real.size(); ++c) {
        if (distance(c) < distance(best)) best = c;
      }
      // the binary16 scale moves thresholds by 2^-11
      if (best != codes[j]) {
        ++differing;
        CHECK(distance(codes[j]) < distance(best) + 2e-3);
      }
      const std::size_t c = codes[j];
      error[j] = reference::entry(spectrum, k, j) -
                 decoded_scale * Complex(points.point_real[c], points.point_imag[c]);
    }
  }
  CHECK(differing < rows * n / 50);
}

TEST_CASE("no choice of codes beats feedback by more than its later columns' terms") {
  // Two rows, three columns, one bit: 8 choices per row. The term of the first column does not
  // depend on the others, so the optimum cannot be below it.
  for (unsigned seed = 1; seed <= 20; ++seed) {
    const ComplexMatrix spectrum = reference::complex_gaussian(2, 3, seed);
    const reference::Dense moment = second_moment(3, 6, seed + 100);
    const FeedbackFilter filter = feedback_filter(moment.view());
    const std::vector<Complex> exact = spectral_moment(moment);
    JointOptions options;
    options.code_bits = 1;
    const JointSolution solution = solve_joint(spectrum, options, {{}, &filter});
    const Constellation& points = constellation(Codec::ring, 1);
    const ComplexMatrix decoded = polar_decode(solution.codes, points);
    const double found = cost(spectrum, decoded, exact, filter.damping);
    double best = std::numeric_limits<double>::infinity();
    for (unsigned choice = 0; choice < 64; ++choice) {
      ComplexMatrix candidate = decoded.clone();
      for (Index entry = 0; entry < 6; ++entry) {
        const float sign = (choice >> entry) & 1 ? -1.0f : 1.0f;
        candidate.real()[entry] *= sign;
        candidate.imag()[entry] *= sign;
      }
      best = std::min(best, cost(spectrum, candidate, exact, filter.damping));
    }
    double later_terms = 0;
    for (Index k = 0; k < 2; ++k) {
      std::vector<Complex> error(3);
      for (Index j = 0; j < 3; ++j) {
        error[j] = reference::entry(spectrum, k, j) - reference::entry(decoded, k, j);
        Complex carried = error[j];
        for (Index i = 0; i < j; ++i) carried += error[i] * unit_upper(filter, i, j);
        if (j > 0) later_terms += filter.diagonal[j] * std::norm(carried);
      }
    }
    CHECK(best <= found + 1e-6);
    CHECK(found - best <= later_terms + 1e-5);
  }
}

TEST_CASE("low rank under feedback: monotone, and what the stored parts give") {
  const Index n = 80;
  const ComplexMatrix spectrum = reference::complex_gaussian(40, n, 85);
  const reference::Dense moment = second_moment(n, 200);
  const FeedbackFilter filter = feedback_filter(moment.view());
  JointOptions options;
  options.code_bits = 4;
  options.rank = 6;
  const JointSolution joint = solve_joint(spectrum, options, {{}, &filter});
  for (std::size_t i = 1; i < joint.objective.size(); ++i) {
    CHECK(joint.objective[i] < joint.objective[i - 1]);
  }
  ComplexMatrix decoded = polar_decode(joint.codes, constellation(Codec::ring, 4));
  for (Index k = 0; k < decoded.rows(); ++k) {
    for (Index l = 0; l < n; ++l) {
      Complex total = reference::entry(decoded, k, l);
      for (Index c = 0; c < options.rank; ++c) {
        total += reference::entry(joint.left.decoded, c, k) *
                 reference::entry(joint.right.decoded, c, l);
      }
      decoded.real()[k * n + l] = static_cast<float>(total.real());
      decoded.imag()[k * n + l] = static_cast<float>(total.imag());
    }
  }
  const std::vector<Complex> exact = spectral_moment(moment);
  const double energy = cost(spectrum, zeros(40, n), exact, filter.damping);
  CHECK(joint.objective.back() ==
        doctest::Approx(cost(spectrum, decoded, exact, filter.damping) / energy).epsilon(1e-3));
  options.rank = 0;
  CHECK(joint.objective.back() < solve_joint(spectrum, options, {{}, &filter}).objective.back());
}

TEST_CASE("codes under feedback do not depend on the number of threads") {
  const ComplexMatrix spectrum = reference::complex_gaussian(600, 100, 86);
  const reference::Dense moment = second_moment(100, 200);
  std::vector<std::uint8_t> packed;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const FeedbackFilter filter = feedback_filter(moment.view());
    JointOptions options;
    options.code_bits = 4;
    const JointSolution solution = solve_joint(spectrum, options, {{}, &filter});
    if (packed.empty()) packed = solution.codes.packed;
    CHECK(packed == solution.codes.packed);
  }
  set_num_threads(0);
}

TEST_CASE("a zero moment feeds nothing back; a singular one is damped") {
  const reference::Dense zero{3, 3, std::vector<float>(9, 0.0f)};
  const FeedbackFilter identity = feedback_filter(zero.view());
  for (Index j = 0; j < 3; ++j) {
    CHECK(identity.diagonal[j] == 1.0f);
    for (Index i = 0; i < j; ++i) CHECK(unit_upper(identity, i, j) == Complex(0, 0));
  }
  const FeedbackFilter singular = feedback_filter(second_moment(100, 1).view());
  CHECK(singular.damping >= kDamping);
  for (const float d : singular.diagonal) CHECK(d > 0.0f);
}

TEST_CASE("the size of the second moment does not matter") {
  const reference::Dense moment = second_moment(30, 60);
  const FeedbackFilter filter = feedback_filter(moment.view());
  for (const float factor : {1e-37f, 1e36f}) {
    reference::Dense scaled = moment;
    for (float& value : scaled.values) value *= factor;
    const FeedbackFilter same = feedback_filter(scaled.view());
    CHECK(same.damping == filter.damping);
    for (Index j = 0; j < 30; ++j) {
      CHECK(same.diagonal[j] == doctest::Approx(filter.diagonal[j]).epsilon(1e-3));
    }
  }
}

TEST_CASE("what is not a second moment is refused") {
  reference::Dense moment = second_moment(4, 9);
  moment.values[1] += 1.0f;
  CHECK_THROWS_AS(feedback_filter(moment.view()), Error);
  reference::Dense indefinite{2, 2, {1.0f, 3.0f, 3.0f, 1.0f}};
  CHECK_THROWS_AS(feedback_filter(indefinite.view()), Error);
  const reference::Dense hollow{2, 2, {0.0f, 1.0f, 1.0f, 0.0f}};
  CHECK_THROWS_AS(feedback_filter(hollow.view()), Error);
  const FeedbackFilter filter = feedback_filter(second_moment(4, 9).view());
  const ComplexMatrix spectrum = reference::complex_gaussian(3, 5);
  CHECK_THROWS_WITH_AS(solve_joint(spectrum, {}, {{}, &filter}),
                       "the feedback filter has size 4, expected 5", Error);
}

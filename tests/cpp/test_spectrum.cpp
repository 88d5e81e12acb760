// Half spectrum: the definition, Parseval's identity, the round trip, and refused arguments.
#include <doctest/doctest.h>

#include "llava_fa/error.hpp"
#include "llava_fa/runtime.hpp"
#include "llava_fa/spectrum.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

struct Shape {
  Index m, n;
};

// Ones, powers of two, odd, prime (dense DFT), large prime (chirp transform), and mixtures; single
// columns, long and even enough to be spread over the lanes and others.
const Shape kShapes[] = {{1, 1},   {1, 8},    {9, 1},    {2, 2},    {8, 8},    {16, 24},  {15, 25},
                         {7, 3},   {31, 37},  {43, 86},  {121, 64}, {151, 40}, {40, 269}, {257, 19},
                         {64, 1},  {120, 1},  {128, 1},  {144, 1},  {192, 1},  {512, 1},  {544, 1},
                         {688, 1}, {1520, 1}, {1792, 1}, {4304, 1}, {11008, 1}};

}  // namespace

TEST_CASE("the half spectrum equals its definition in double precision") {
  for (const auto [m, n] : kShapes) {
    CAPTURE(m);
    CAPTURE(n);
    const reference::Dense weight = reference::gaussian(m, n);
    const auto expected = reference::half_spectrum(weight);
    const ComplexMatrix spectrum = half_spectrum(weight.view());
    REQUIRE(spectrum.rows() == m / 2 + 1);
    REQUIRE(spectrum.cols() == n);
    double error = 0;
    for (Index i = 0; i < spectrum.count(); ++i) {
      error += std::norm(expected[i] - reference::Complex(spectrum.real()[i], spectrum.imag()[i]));
    }
    // Rounding of a float32 transform grows with the square root of its passes; 1e-6 leaves room.
    CHECK(std::sqrt(error) <= 1e-6 * reference::norm(weight.values));
  }
}

TEST_CASE("Parseval weights make the half spectrum an isometry") {
  for (const auto [m, n] : kShapes) {
    const reference::Dense weight = reference::gaussian(m, n, 2);
    const double energy = reference::norm(weight.values);
    CHECK(reference::norm(half_spectrum(weight.view())) == doctest::Approx(energy).epsilon(1e-6));
  }
}

TEST_CASE("the inverse returns the weight, with channel multipliers undone") {
  for (const auto [m, n] : kShapes) {
    CAPTURE(m);
    CAPTURE(n);
    const reference::Dense weight = reference::gaussian(m, n, 3);
    std::vector<float> rows(m), cols(n), row_inverse(m), col_inverse(n);
    for (Index i = 0; i < m; ++i) row_inverse[i] = 1.0f / (rows[i] = i % 2 ? -2.0f : 0.5f);
    for (Index j = 0; j < n; ++j) col_inverse[j] = 1.0f / (cols[j] = j % 3 ? 1.0f : -4.0f);
    std::vector<float> back(m * n);
    inverse_half_spectrum(half_spectrum(weight.view(), rows, cols), m, back.data(), row_inverse,
                          col_inverse);
    CHECK(reference::distance(back, weight.values) <= 2e-6 * reference::norm(weight.values));
  }
}

TEST_CASE("the inverse projects out what a real matrix cannot have") {
  // Row 0 of an even-height spectrum belongs to a real row of the matrix; an arbitrary complex row
  // decodes to its nearest real matrix: transforming again must be a fixed point.
  const Index m = 6, n = 5;
  ComplexMatrix spectrum = reference::complex_gaussian(m / 2 + 1, n, 4);
  std::vector<float> first(m * n), second(m * n);
  inverse_half_spectrum(spectrum.clone(), m, first.data());
  inverse_half_spectrum(half_spectrum({first.data(), m, n, n}), m, second.data());
  CHECK(reference::distance(first, second) <= 1e-6 * reference::norm(first));
}

TEST_CASE("a strided view is read with its stride") {
  const reference::Dense wide = reference::gaussian(12, 20, 5);
  reference::Dense part{12, 7, {}};
  for (Index i = 0; i < 12; ++i) {
    for (Index j = 0; j < 7; ++j) part.values.push_back(wide.at(i, j));
  }
  const ComplexMatrix a = half_spectrum({wide.values.data(), 12, 7, 20});
  CHECK(reference::distance(a, half_spectrum(part.view())) == 0.0);
}

TEST_CASE("results are bit-identical for any number of threads") {
  // Large enough that the work is really shared out (worthwhile_threads).
  const reference::Dense weight = reference::gaussian(1600, 1000, 6);
  set_num_threads(1);
  const ComplexMatrix one = half_spectrum(weight.view());
  set_num_threads(3);
  const ComplexMatrix three = half_spectrum(weight.view());
  set_num_threads(0);
  CHECK(reference::distance(one, three) == 0.0);
}

TEST_CASE("shapes and multipliers that do not fit are refused") {
  const reference::Dense weight = reference::gaussian(4, 4);
  const std::vector<float> wrong(3, 1.0f);
  CHECK_THROWS_AS(half_spectrum({weight.values.data(), 0, 4, 4}), Error);
  CHECK_THROWS_WITH_AS(half_spectrum(weight.view(), wrong),
                       "output_multiplier has length 3, expected 4", Error);
  std::vector<float> out(16);
  CHECK_THROWS_AS(inverse_half_spectrum(half_spectrum(weight.view()), 7, out.data()), Error);
}

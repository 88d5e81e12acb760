// ODC scales and random signs.
#include <doctest/doctest.h>

#include <limits>
#include <numeric>

#include "llava_fa/calibration.hpp"
#include "llava_fa/error.hpp"
#include "llava_fa/spectrum.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

// Scale of every column spread over two orders of magnitude.
reference::Dense spread_columns(Index m, Index n) {
  reference::Dense weight = reference::gaussian(m, n, 31);
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      weight.values[i * n + j] *= std::pow(10.0f, 2.0f * float(j) / float(n) - 1.0f);
    }
  }
  return weight;
}

DiagonalScales scales_of(const reference::Dense& weight, const SecondMoments& moments) {
  return diagonal_scales(channel_energies(weight.view()), moments);
}

// Mean squares plus a tenth of their mean.
std::vector<float> damped(std::vector<float> moments) {
  const double sum = std::accumulate(moments.begin(), moments.end(), 0.0);
  const float tenth = static_cast<float>(0.1 * sum / static_cast<double>(moments.size()));
  for (float& moment : moments) moment += tenth;
  return moments;
}

// (sum c_j^2 w_j^2)(sum s_j^2 / c_j^2): noise power of the layer's output up to a constant.
double noise(const std::vector<double>& energies, const std::vector<float>& moments,
             const std::vector<double>& multiplier) {
  double signal = 0, gain = 0;
  for (std::size_t j = 0; j < energies.size(); ++j) {
    signal += multiplier[j] * multiplier[j] * energies[j];
    gain += moments[j] / (multiplier[j] * multiplier[j]);
  }
  return signal * gain;
}

}  // namespace

TEST_CASE("channel energies are sums of squares with their multipliers") {
  const reference::Dense weight = reference::gaussian(130, 7, 30);
  const std::vector<float> rows(130, 2.0f), cols = {1, 1, 3, 1, 1, 1, 0.5f};
  const ChannelEnergies energies = channel_energies(weight.view(), rows, cols);
  double total = 0;
  for (Index j = 0; j < 7; ++j) {
    double expected = 0;
    for (Index i = 0; i < 130; ++i) expected += std::pow(2.0 * cols[j] * weight.at(i, j), 2);
    CHECK(energies.cols[j] == doctest::Approx(expected).epsilon(1e-12));
    total += expected;
  }
  CHECK(energies.total() == doctest::Approx(total).epsilon(1e-12));
}

TEST_CASE("input scales minimize the predicted output noise") {
  const Index m = 200, n = 24;
  const reference::Dense weight = spread_columns(m, n);
  std::vector<float> moments(n);
  for (Index j = 0; j < n; ++j) moments[j] = 1.0f + 5.0f * float(j % 4);
  const DiagonalScales scales = scales_of(weight, {moments, {}, {}});
  REQUIRE(scales.in.size() == static_cast<std::size_t>(n));

  std::vector<double> energies(n), multiplier(n);
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) energies[j] += std::pow(double(weight.at(i, j)), 2);
  }
  for (Index j = 0; j < n; ++j) multiplier[j] = 1.0 / scales.in[j];
  moments = damped(moments);
  double cross = 0;
  for (Index j = 0; j < n; ++j) cross += std::sqrt(energies[j] * moments[j]);
  const double minimum = noise(energies, moments, multiplier);
  CHECK(minimum == doctest::Approx(cross * cross).epsilon(1e-3));  // Cauchy-Schwarz
  for (Index j = 0; j < n; ++j) {
    std::vector<double> moved = multiplier;
    moved[j] *= 1.1;
    CHECK(noise(energies, moments, moved) > minimum);
  }
}

TEST_CASE("scales have geometric mean one") {
  const DiagonalScales scales = scales_of(spread_columns(200, 24), {});
  double log_sum = 0;
  for (const float scale : scales.in) log_sum += std::log(scale);
  CHECK(log_sum / 24 == doctest::Approx(0.0).epsilon(1e-3));
}

TEST_CASE("equal channels are not worth their scales") {
  const DiagonalScales scales = scales_of(reference::gaussian(200, 200, 32), {});
  CHECK(scales.in.empty());
  CHECK(scales.out.empty());
}

TEST_CASE("channels without weight get a neutral scale") {
  reference::Dense weight = spread_columns(200, 24);
  for (Index i = 0; i < 200; ++i) weight.values[i * 24 + 7] = 0.0f;
  const std::vector<float> moments(24, 1.0f);
  const DiagonalScales scales = scales_of(weight, {moments, {}, {}});
  CHECK(scales.in[7] == 1.0f);
  for (const float scale : scales.in) CHECK((scale > 0 && std::isfinite(scale)));
}

TEST_CASE("channels that are silent in the examples do not take up the noise of the others") {
  const reference::Dense weight = reference::gaussian(4000, 24, 33);
  for (const float silent : {0.0f, 1e-30f, 1e-6f}) {
    std::vector<float> moments(24, 1.0f);
    for (Index j = 0; j < 12; ++j) moments[j] = silent;
    const DiagonalScales scales = scales_of(weight, {moments, {}, {}});
    REQUIRE(scales.in.size() == 24);
    // (damped loud over damped silent square)^1/4 = ((1 + 0.05) / 0.05)^1/4
    CHECK(scales.in[0] / scales.in[23] == doctest::Approx(std::pow(21.0, 0.25)).epsilon(0.02));
  }
}

TEST_CASE("an input that is silent altogether counts as unknown to the scales") {
  const std::vector<float> moments(24, 0.0f);
  CHECK(scales_of(reference::gaussian(4000, 24, 33), {moments, {}, {}}).in.empty());
}

TEST_CASE("spectral weights follow the power spectrum of the input") {
  const Index n = 8;
  std::vector<float> covariance(n * n), ones(n, 1.0f);
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < n; ++j) covariance[i * n + j] = 1.0f;
  }
  const std::vector<float> weights = spectral_column_weights(n, {{}, covariance, {}}, ones);
  // All power is at frequency 0: sqrt(n) times the mean's root; silent frequencies keep 1/10 of it.
  CHECK(weights[0] == doctest::Approx(std::sqrt(double(n))).epsilon(1e-4));
  for (Index l = 1; l < n; ++l) CHECK(weights[l] == doctest::Approx(0.1));
  CHECK(spectral_column_weights(n, {}, ones).empty());
}

TEST_CASE("signs depend on seed, stream and position, and are balanced") {
  const auto a = random_signs(1, kInputSignStream, 10000);
  CHECK(a == random_signs(1, kInputSignStream, 10000));
  CHECK(a != random_signs(2, kInputSignStream, 10000));
  CHECK(a != random_signs(1, kOutputSignStream, 10000));
  const double mean = std::accumulate(a.begin(), a.end(), 0.0) / 10000;
  CHECK(std::abs(mean) < 0.04);  // four standard deviations
  const auto prefix = random_signs(1, kInputSignStream, 10);
  CHECK(std::equal(prefix.begin(), prefix.end(), a.begin()));
}

TEST_CASE("bad moments are refused by name") {
  const reference::Dense weight = reference::gaussian(4, 3);
  const std::vector<float> negative = {1, -1, 1}, short_one = {1, 1};
  const std::vector<float> not_a_number = {1, std::numeric_limits<float>::quiet_NaN(), 1};
  CHECK_THROWS_WITH_AS(scales_of(weight, {short_one, {}, {}}),
                       "input_second_moment has length 2, expected 3", Error);
  CHECK_THROWS_AS(scales_of(weight, {negative, {}, {}}), Error);
  CHECK_THROWS_AS(scales_of(weight, {not_a_number, {}, {}}), Error);
}

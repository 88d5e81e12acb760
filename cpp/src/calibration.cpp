// Diagonal calibration and random signs; the formulas stand in the header and docs/method.md.
#include "llava_fa/calibration.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "backend.hpp"
#include "checks.hpp"
#include "counter_random.hpp"
#include "half_float.hpp"
#include "llava_fa/runtime.hpp"
#include "llava_fa/spectrum.hpp"
#include "weight_stages.hpp"

namespace llava_fa {
namespace {

constexpr std::array<std::string_view, 3> kOdcNames = {"none", "spatial", "spectral"};
constexpr double kLargestScale = 256.0;
constexpr double kBitsPerScale = 16.0;
constexpr double kMomentDamping = 0.1;

void check_moments(std::span<const float> moments, Index expected, const char* name) {
  if (moments.empty()) return;
  require_argument(static_cast<Index>(moments.size()) == expected, name, " has length ",
                   moments.size(), ", expected ", expected);
  for (std::size_t j = 0; j < moments.size(); ++j) {
    require(std::isfinite(moments[j]), ErrorCode::non_finite, name, "[", j, "] is ", moments[j]);
    require_argument(moments[j] >= 0.0f, name, "[", j, "] is ", moments[j],
                     ", expected a mean square, 0 or more");
  }
}

// s_j^2 plus a tenth of their mean, or ones where nothing is known. A few examples leave some
// channels nearly silent by chance; undamped, these would take up the noise of all others.
std::vector<double> damped_squares(std::span<const float> moments, std::size_t count) {
  std::vector<double> squares(count, 1.0);
  if (moments.empty()) return squares;
  const double sum = std::accumulate(moments.begin(), moments.end(), 0.0);
  for (std::size_t j = 0; j < count; ++j) {
    squares[j] = moments[j] + kMomentDamping * sum / static_cast<double>(count);
  }
  return squares;
}

// Noise power after the best scales, relative to none: (sum s w)^2 / (sum s^2 sum w^2) <= 1.
double predicted_gain(const std::vector<double>& squares, const std::vector<double>& energies) {
  double cross = 0, signal = 0, weight = 0;
  for (std::size_t j = 0; j < energies.size(); ++j) {
    cross += std::sqrt(squares[j] * energies[j]);
    signal += squares[j];
    weight += energies[j];
  }
  return signal > 0 && weight > 0 ? cross * cross / (signal * weight) : 1.0;
}

// 1/c_j = (w_j / s_j)^1/2 with geometric mean one, clamped and rounded to binary16.
std::vector<float> decode_scales(const std::vector<double>& squares,
                                 const std::vector<double>& energies) {
  std::vector<double> log_scale(energies.size(), 0.0);
  double sum = 0;
  Index used = 0;
  for (std::size_t j = 0; j < energies.size(); ++j) {
    if (energies[j] == 0) continue;
    log_scale[j] = 0.25 * (std::log(energies[j]) - std::log(squares[j]));
    sum += log_scale[j];
    ++used;
  }
  const double mean = used > 0 ? sum / static_cast<double>(used) : 0.0;
  std::vector<float> scales(energies.size());
  for (std::size_t j = 0; j < scales.size(); ++j) {
    const double scale = energies[j] > 0 ? std::exp(log_scale[j] - mean) : 1.0;
    const double clamped = std::clamp(scale, 1.0 / kLargestScale, kLargestScale);
    scales[j] = half_to_float(float_to_half(static_cast<float>(clamped)));
  }
  return scales;
}

// One bit per weight halves the amplitude of the noise, so scales that cost b bits per weight must
// lower its power below 2^(-2 b) to be worth storing.
bool worth_storing(double gain, Index channels_per_scale) {
  return gain < std::exp2(-2.0 * kBitsPerScale / static_cast<double>(channels_per_scale));
}

// Scales of one side, or none.
std::vector<float> worthwhile_scales(std::span<const float> moments,
                                     const std::vector<double>& energies,
                                     Index channels_per_scale) {
  const std::vector<double> squares = damped_squares(moments, energies.size());
  if (!worth_storing(predicted_gain(squares, energies), channels_per_scale)) return {};
  return decode_scales(squares, energies);
}

}  // namespace

std::string_view odc_name(Odc odc) { return kOdcNames[static_cast<std::size_t>(odc)]; }

Odc odc_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kOdcNames.size(); ++i) {
    if (kOdcNames[i] == name) return static_cast<Odc>(i);
  }
  throw Error(ErrorCode::invalid_argument,
              concat("odc is \"", name, "\", expected \"none\", \"spatial\" or \"spectral\""));
}

void validate(const SecondMoments& moments, Index rows, Index cols) {
  check_moments(moments.input_diagonal, cols, "input_second_moment");
  check_moments(moments.output_diagonal, rows, "output_second_moment");
  require_argument(
      moments.input_full.empty() || static_cast<Index>(moments.input_full.size()) == cols * cols,
      "the full input_second_moment has ", moments.input_full.size(), " entries, expected ",
      cols * cols);
  for (const float value : moments.input_full) {
    require(std::isfinite(value), ErrorCode::non_finite,
            "the full input_second_moment has a NaN or infinite entry");
  }
}

// Squares of float32 values cannot overflow a double, so only the entries themselves can be bad.
std::optional<Index> non_finite_row(const ChannelEnergies& energies) {
  const auto bad = std::find_if_not(energies.rows.begin(), energies.rows.end(),
                                    [](double energy) { return std::isfinite(energy); });
  if (bad == energies.rows.end()) return std::nullopt;
  return bad - energies.rows.begin();
}

void report_non_finite(Index row, std::span<const float> entries) {
  const auto bad = std::find_if_not(entries.begin(), entries.end() - 1,
                                    [](float entry) { return std::isfinite(entry); });
  throw Error(ErrorCode::non_finite,
              concat("weight[", row, ", ", bad - entries.begin(), "] is ", *bad));
}

double ChannelEnergies::total() const { return std::accumulate(rows.begin(), rows.end(), 0.0); }

ChannelEnergies channel_energies(const MatrixView& weight, std::span<const float> output_multiplier,
                                 std::span<const float> input_multiplier) {
  ChannelEnergies energies{std::vector<double>(weight.rows), std::vector<double>(weight.cols)};
  cpu_backend().channel_energies(weight,
                                 output_multiplier.empty() ? nullptr : output_multiplier.data(),
                                 input_multiplier.empty() ? nullptr : input_multiplier.data(),
                                 num_threads(), energies.rows, energies.cols);
  if (const auto row = non_finite_row(energies)) {
    report_non_finite(*row, {weight.row(*row), static_cast<std::size_t>(weight.cols)});
  }
  return energies;
}

DiagonalScales diagonal_scales(const ChannelEnergies& energies, const SecondMoments& moments) {
  const Index rows = static_cast<Index>(energies.rows.size());
  const Index cols = static_cast<Index>(energies.cols.size());
  validate(moments, rows, cols);
  DiagonalScales scales;
  scales.in = worthwhile_scales(moments.input_diagonal, energies.cols, rows);
  scales.out = worthwhile_scales(moments.output_diagonal, energies.rows, cols);
  return scales;
}

std::vector<float> spectral_column_weights(Index input_channels, const SecondMoments& moments,
                                           std::span<const float> input_signs) {
  if (moments.input_full.empty()) return {};
  const Index n = input_channels;
  const MatrixView covariance{moments.input_full.data(), n, n, n};
  const ComplexMatrix half = half_spectrum(covariance, input_signs, input_signs);
  // Entry (k, n - k) of F Σ Fᵀ is the diagonal entry n - k of conj(F) Σ Fᵀ, which is real and, for
  // a real Σ, symmetric in the frequency: the kept rows determine all of it.
  std::vector<float> weights(static_cast<std::size_t>(n));
  double mean = 0;
  for (Index l = 0; l < n; ++l) {
    const Index k = l <= n / 2 ? l : n - l;
    const double value = half.real()[k * n + (n - k) % n] / parseval_weight(k, n);
    weights[l] = static_cast<float>(std::max(value, 0.0));
    mean += weights[l] / static_cast<double>(n);
  }
  for (float& w : weights) {
    // Frequencies that the data never excites still carry weight in other data: floor at 1 %.
    w = mean > 0 ? static_cast<float>(std::sqrt(std::max(w / mean, 0.01))) : 1.0f;
  }
  return weights;
}

std::vector<float> random_signs(std::uint64_t seed, int stream, Index count) {
  std::vector<float> signs(static_cast<std::size_t>(count));
  for (Index j = 0; j < count; ++j) {
    const std::uint64_t counter = 2 * static_cast<std::uint64_t>(j) + static_cast<unsigned>(stream);
    signs[j] = counter_random(seed, counter) >> 63 ? -1.0f : 1.0f;
  }
  return signs;
}

}  // namespace llava_fa

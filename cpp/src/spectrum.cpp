// Half spectrum: argument checks and the order of the two transforms.
#include "llava_fa/spectrum.hpp"

#include <numbers>

#include "backend.hpp"
#include "checks.hpp"
#include "llava_fa/runtime.hpp"

namespace llava_fa {
namespace {

const float* multiplier_or_null(std::span<const float> multiplier, Index expected,
                                const char* name) {
  if (multiplier.empty()) return nullptr;
  require_argument(static_cast<Index>(multiplier.size()) == expected, name, " has length ",
                   multiplier.size(), ", expected ", expected);
  return multiplier.data();
}

}  // namespace

float parseval_weight(Index k, Index output_channels) {
  const bool own_mirror = k == 0 || 2 * k == output_channels;
  return own_mirror ? 1.0f : std::numbers::sqrt2_v<float>;
}

ComplexMatrix half_spectrum(const MatrixView& weight, std::span<const float> output_multiplier,
                            std::span<const float> input_multiplier) {
  require_argument(weight.rows >= 1 && weight.cols >= 1, "weight has shape (", weight.rows, ", ",
                   weight.cols, "), expected at least (1, 1)");
  const float* rows = multiplier_or_null(output_multiplier, weight.rows, "output_multiplier");
  const float* cols = multiplier_or_null(input_multiplier, weight.cols, "input_multiplier");
  ComplexMatrix spectrum(half_rows(weight.rows), weight.cols);
  const Backend& backend = cpu_backend();
  backend.forward_over_rows(weight, rows, cols, num_threads(), spectrum);
  backend.transform_rows(spectrum, /*inverse=*/false, num_threads());
  return spectrum;
}

void inverse_half_spectrum(ComplexMatrix&& spectrum, Index output_channels, float* weight_out,
                           std::span<const float> output_multiplier,
                           std::span<const float> input_multiplier) {
  require_argument(output_channels >= 1 && spectrum.rows() == half_rows(output_channels),
                   "spectrum has ", spectrum.rows(), " rows, expected ", half_rows(output_channels),
                   " for ", output_channels, " output channels");
  require_argument(spectrum.cols() >= 1, "spectrum has no columns");
  const float* rows = multiplier_or_null(output_multiplier, output_channels, "output_multiplier");
  const float* cols = multiplier_or_null(input_multiplier, spectrum.cols(), "input_multiplier");
  const Backend& backend = cpu_backend();
  backend.transform_rows(spectrum, /*inverse=*/true, num_threads());
  backend.inverse_over_rows(spectrum, output_channels, rows, cols, num_threads(), weight_out);
}

ComplexMatrix half_spectrum_over_rows(const MatrixView& values) {
  require_argument(values.rows >= 1 && values.cols >= 1, "values have shape (", values.rows, ", ",
                   values.cols, "), expected at least (1, 1)");
  ComplexMatrix spectrum(half_rows(values.rows), values.cols);
  cpu_backend().forward_over_rows(values, nullptr, nullptr, num_threads(), spectrum);
  return spectrum;
}

void inverse_half_spectrum_over_rows(const ComplexMatrix& spectrum, Index length,
                                     float* values_out) {
  require_argument(length >= 1 && spectrum.rows() == half_rows(length), "spectrum has ",
                   spectrum.rows(), " rows, expected ", half_rows(length), " for length ", length);
  cpu_backend().inverse_over_rows(spectrum, length, nullptr, nullptr, num_threads(), values_out);
}

}  // namespace llava_fa

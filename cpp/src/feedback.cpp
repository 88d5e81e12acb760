// The feedback filter of a layer: checks, the transform of its second moment, damping with retry.
#include "llava_fa/feedback.hpp"

#include <cmath>

#include "backend.hpp"
#include "checks.hpp"
#include "llava_fa/runtime.hpp"
#include "llava_fa/spectrum.hpp"

namespace llava_fa {
namespace {

constexpr double kAsymmetry = 1e-3;      // of the sum of the pair's diagonal entries
constexpr double kLargestDamping = 1.0;  // more than the mean of the whole diagonal is no damping

// Symmetric, and no entry larger than its diagonal allows (Cauchy-Schwarz).
void check_entries(const MatrixView& moment) {
  require_argument(moment.rows == moment.cols, "the full input_second_moment has shape (",
                   moment.rows, ", ", moment.cols, "), expected a square matrix");
  for (Index i = 0; i < moment.rows; ++i) {
    for (Index j = 0; j < i; ++j) {
      const double difference = std::fabs(moment.row(i)[j] - moment.row(j)[i]);
      const double size = std::fabs(moment.row(i)[i]) + std::fabs(moment.row(j)[j]);
      require_argument(difference <= kAsymmetry * size, "the full input_second_moment is not ",
                       "symmetric: entry (", i, ", ", j, ") is ", moment.row(i)[j], ", entry (", j,
                       ", ", i, ") is ", moment.row(j)[i]);
      require_argument(std::fabs(moment.row(i)[j]) <= 0.5 * (1.0 + kAsymmetry) * size,
                       "the full input_second_moment is not positive semidefinite: entry (", i,
                       ", ", j, ") is ", moment.row(i)[j], ", larger than its diagonal entries ",
                       moment.row(i)[i], " and ", moment.row(j)[j], " allow");
    }
  }
}

// trace(Σ) / n of the multiplied input; the transform keeps it.
double mean_diagonal(const MatrixView& moment, std::span<const float> multiplier) {
  double trace = 0;
  for (Index j = 0; j < moment.cols; ++j) {
    const double factor = multiplier.empty() ? 1.0 : multiplier[j];
    trace += factor * factor * moment.row(j)[j];
  }
  return trace / static_cast<double>(moment.cols);
}

// The multiplier that also makes the mean diagonal one, so that any size of Σ fits float32.
std::vector<float> normalized(std::span<const float> multiplier, double mean, Index count) {
  std::vector<float> out(static_cast<std::size_t>(count), 1.0f);
  if (!multiplier.empty()) out.assign(multiplier.begin(), multiplier.end());
  const double factor = 1.0 / std::sqrt(mean);
  for (float& value : out) value = static_cast<float>(value * factor);
  return out;
}

FeedbackFilter empty_filter(Index n) {
  FeedbackFilter filter;
  filter.size = n;
  filter.diagonal.assign(static_cast<std::size_t>(n), 1.0f);
  const Index last = filter.block_count() - 1;
  filter.blocks =
      FloatBuffer(FeedbackFilter::block_offset(last) + 2 * n * filter.block_width(last));
  std::fill_n(filter.blocks.data(), filter.blocks.count(), 0.0f);
  return filter;
}

}  // namespace

FeedbackFilter feedback_filter(const MatrixView& second_moment,
                               std::span<const float> input_multiplier) {
  check_entries(second_moment);
  FeedbackFilter filter = empty_filter(second_moment.cols);
  const double mean = mean_diagonal(second_moment, input_multiplier);
  if (!(mean > 0)) return filter;
  const std::vector<float> multiplier = normalized(input_multiplier, mean, second_moment.cols);
  const ComplexMatrix half = half_spectrum(second_moment, multiplier, multiplier);
  for (double damping = kDamping; damping <= kLargestDamping; damping *= 10.0) {
    if (!cpu_backend().factor_second_moment(half, damping, num_threads(), filter)) continue;
    filter.damping = damping;
    return filter;
  }
  throw Error(ErrorCode::invalid_argument,
              "the full input_second_moment is not positive semidefinite: adding its mean diagonal "
              "does not make it so; was it accumulated as E[x x^T]?");
}

}  // namespace llava_fa

// The feedback filter of a layer: checks, the transform of its second moment, damping with retry.
#include "llava_fa/feedback.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend.hpp"
#include "checks.hpp"
#include "filter_stages.hpp"
#include "llava_fa/calibration.hpp"
#include "llava_fa/runtime.hpp"
#include "llava_fa/spectrum.hpp"

namespace llava_fa {
namespace {

constexpr double kAsymmetry = 1e-3;      // of the sum of the pair's diagonal entries
constexpr double kLargestDamping = 1.0;  // more than the mean of the whole diagonal is no damping
constexpr Index kProbes = 32;
constexpr std::uint64_t kProbeSeed = 0;

constexpr Index kCheckedTile = 64;  // entries are compared with those across the diagonal

// Entries (i, j) and (j, i) equal, and no larger than the diagonal allows (Cauchy-Schwarz).
void check_pair(const MatrixView& moment, Index i, Index j, float of_i, float of_j) {
  const float entry = moment.row(i)[j], mirror = moment.row(j)[i];
  const double size = std::fabs(of_i) + std::fabs(of_j);
  require_argument(std::fabs(entry - mirror) <= kAsymmetry * size,
                   "the full input_second_moment is not symmetric: entry (", i, ", ", j, ") is ",
                   entry, ", entry (", j, ", ", i, ") is ", mirror);
  require_argument(std::fabs(entry) <= 0.5 * (1.0 + kAsymmetry) * size,
                   "the full input_second_moment is not positive semidefinite: entry (", i, ", ", j,
                   ") is ", entry, ", larger than its diagonal entries ", of_i, " and ", of_j,
                   " allow");
}

void check_entries(const MatrixView& moment) {
  require_argument(moment.rows == moment.cols, "the full input_second_moment has shape (",
                   moment.rows, ", ", moment.cols, "), expected a square matrix");
  const Index n = moment.rows;
  std::vector<float> diagonal;
  for (Index i = 0; i < n; ++i) diagonal.push_back(moment.row(i)[i]);
  for (Index row = 0; row < n; row += kCheckedTile) {
    for (Index col = 0; col <= row; col += kCheckedTile) {
      for (Index i = row; i < std::min(n, row + kCheckedTile); ++i) {
        for (Index j = col; j < std::min(i, col + kCheckedTile); ++j) {
          check_pair(moment, i, j, diagonal[i], diagonal[j]);
        }
      }
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

// A second moment in the host's memory.
class HostFilterStages final : public FilterStages {
 public:
  void transform(const MatrixView& second_moment, std::span<const float> multiplier) override {
    half_ = half_spectrum(second_moment, multiplier, multiplier);
    allocate(second_moment.cols);
  }

  bool factor(double damping) override {
    filter_.damping = damping;
    return cpu_backend().factor_second_moment(half_, damping, num_threads(), filter_);
  }

  void set_identity(Index size) override {
    allocate(size);
    std::fill(filter_.diagonal.begin(), filter_.diagonal.end(), 1.0f);
    std::fill_n(filter_.blocks.data(), filter_.blocks.count(), 0.0f);
  }

  FeedbackFilter finish() && { return std::move(filter_); }

 private:
  void allocate(Index size) {
    filter_.size = size;
    filter_.diagonal.resize(static_cast<std::size_t>(size));
    filter_.blocks = FloatBuffer(FeedbackFilter::floats(size));
  }

  FeedbackFilter filter_;
  ComplexMatrix half_;
};

// Rows of random signs z_j times D_j^1/2, so that dividing by R on the right gives z M⁻¹.
ComplexMatrix weighted_probes(const FeedbackFilter& filter) {
  const Index n = filter.size;
  const std::vector<float> signs = random_signs(kProbeSeed, kInputSignStream, kProbes * n);
  ComplexMatrix probes(kProbes, n);
  std::fill_n(probes.imag(), probes.count(), 0.0f);
  for (Index i = 0; i < probes.count(); ++i) {
    probes.real()[i] = signs[i] * std::sqrt(filter.diagonal[i % n]);
  }
  return probes;
}

}  // namespace

void find_filter(FilterStages& stages, const MatrixView& second_moment,
                 std::span<const float> input_multiplier) {
  check_entries(second_moment);
  require_argument(
      input_multiplier.empty() || static_cast<Index>(input_multiplier.size()) == second_moment.cols,
      "input_multiplier has length ", input_multiplier.size(), ", expected ", second_moment.cols);
  const double mean = mean_diagonal(second_moment, input_multiplier);
  if (!(mean > 0)) return stages.set_identity(second_moment.cols);
  stages.transform(second_moment, normalized(input_multiplier, mean, second_moment.cols));
  for (double damping = kDamping; damping <= kLargestDamping; damping *= 10.0) {
    if (stages.factor(damping)) return;
  }
  throw Error(ErrorCode::invalid_argument,
              "the full input_second_moment is not positive semidefinite: adding its mean diagonal "
              "does not make it so; was it accumulated as E[x x^T]?");
}

FeedbackFilter feedback_filter(const MatrixView& second_moment,
                               std::span<const float> input_multiplier) {
  HostFilterStages stages;
  find_filter(stages, second_moment, input_multiplier);
  return std::move(stages).finish();
}

FedBackNoise fed_back_noise(const FeedbackFilter& filter) {
  ComplexMatrix noise = weighted_probes(filter);
  cpu_backend().solve_filter(filter, num_threads(), noise);
  std::vector<double> energies(kProbes);
  cpu_backend().row_energies(noise, nullptr, num_threads(), energies);
  const double entries = static_cast<double>(filter.size);
  const double pivots =
      std::accumulate(filter.diagonal.begin(), filter.diagonal.end(), 0.0) / entries;
  const double spread =
      std::accumulate(energies.begin(), energies.end(), 0.0) / (entries * kProbes);
  return {pivots, std::max(0.0, pivots - filter.damping * spread)};
}

}  // namespace llava_fa

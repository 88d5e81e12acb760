// Alternation between low rank and codes:
//
// 1. L ← truncated SVD of (Ã - Q) R, un-weighted, rounded to its stored form; Q = 0 at first, and
//    later passes start warm from the previous right factor. R is the root of the error's weight.
//    If R is triangular, U Σ Vᴴ R⁻¹ is found as U Uᴴ (Ã - Q), for which no R is to be solved.
// 2. Q ← codes of Ã - L, with feedback if R is triangular; objective ||(Ã - L - Q) R||^2.
// 3. Repeat while the objective falls by 0.1 % or more; the best iterate is kept.
// 4. One more step 1 for the best Q, kept only if it lowers the objective.
#include "llava_fa/joint_solver.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "backend.hpp"
#include "checks.hpp"
#include "code_book.hpp"
#include "half_float.hpp"
#include "joint_stages.hpp"
#include "llava_fa/runtime.hpp"
#include "low_rank_internal.hpp"
#include "weight_stages.hpp"

namespace llava_fa {
namespace {

constexpr double kLeastImprovement = 1e-3;
constexpr double kLargestGain = 4.0;  // codes that carry less than that of a row are no estimate
constexpr float kLeastValue = 1e-6f;  // of the largest singular value; vectors of less are rounding
constexpr std::uint64_t kSketchStream = 0x51a7e5eed0000000ull;  // apart from the signs' seeds

// Column c of the vectors times sqrt(value c), as rows: (rank, length).
ComplexMatrix scaled_transpose(const ComplexMatrix& vectors, std::span<const float> values) {
  const Index rank = vectors.cols(), length = vectors.rows();
  ComplexMatrix out(rank, length);
  for (Index c = 0; c < rank; ++c) {
    const float root = std::sqrt(values[c]);
    for (Index k = 0; k < length; ++k) {
      out.real()[c * length + k] = root * vectors.real()[k * rank + c];
      out.imag()[c * length + k] = root * vectors.imag()[k * rank + c];
    }
  }
  return out;
}

// Row c of the vectors times sqrt(value c), with column l divided by weight l.
ComplexMatrix scaled_rows(const ComplexMatrix& vectors, std::span<const float> values,
                          std::span<const float> column_weight) {
  ComplexMatrix out(vectors.rows(), vectors.cols());
  for (Index c = 0; c < vectors.rows(); ++c) {
    const float root = std::sqrt(values[c]);
    for (Index l = 0; l < vectors.cols(); ++l) {
      const float factor = column_weight.empty() ? root : root / column_weight[l];
      out.real()[c * vectors.cols() + l] = factor * vectors.real()[c * vectors.cols() + l];
      out.imag()[c * vectors.cols() + l] = factor * vectors.imag()[c * vectors.cols() + l];
    }
  }
  return out;
}

// Of singular values, largest first; 0 where the vectors say nothing.
std::vector<float> reciprocals(std::span<const float> values) {
  std::vector<float> out;
  for (const float value : values) {
    out.push_back(value > kLeastValue * values.front() ? 1.0f / value : 0.0f);
  }
  return out;
}

void scale_columns(ComplexMatrix& matrix, std::span<const float> factor) {
  for (Index k = 0; k < 2 * matrix.rows(); ++k) {
    float* row = matrix.real() + k * matrix.cols();
    for (Index l = 0; l < matrix.cols(); ++l) row[l] *= factor[l];
  }
}

// A spectrum in the host's memory.
class HostJointStages final : public JointStages {
 public:
  HostJointStages(const ComplexMatrix& spectrum, const JointOptions& options,
                  const JointWeight& weight)
      : spectrum_(spectrum),
        weight_(weight),
        book_{options.codec, options.code_bits, options.state_bits},
        refit_scales_(!options.unbiased || weight.filter == nullptr) {
    for (const float d : weight_.column) squared_weight_.push_back(d * d);
  }

  double energy() override {
    ComplexMatrix copy = spectrum_.clone();
    return weighted_energy(copy);
  }

  TruncatedSvd decompose(const SvdOptions& options, const ComplexMatrix* warm_start) override {
    without_codes();
    weigh(work_);
    return randomized_svd(work_, options, warm_start);
  }

  std::optional<ComplexMatrix> project(const ComplexMatrix& left_vectors) override {
    if (weight_.filter == nullptr) return std::nullopt;
    without_codes();
    return adjoint(cpu_backend().multiply_adjoint(work_, left_vectors, num_threads()));
  }

  CodingCost encode(const Factors& factors) override {
    without_factors(factors);
    EncodedEntries encoded = encode_entries(
        work_, book_, {squared_weight_, weight_.filter, refit_scales_}, /*write_back=*/false);
    found_ = std::move(encoded.codes);
    return {encoded.error, encoded.energy};
  }

  void keep() override { kept_ = std::move(found_); }

  double error(const Factors& factors) override {
    without_codes();
    subtract(factors, work_);
    return weighted_energy(work_);
  }

  PolarCodes codes(const Factors& factors, bool unbiased) override {
    if (unbiased && weight_.filter == nullptr) unbias(factors);
    return std::move(kept_);
  }

 private:
  // work = Ã - Q.
  void without_codes() {
    if (kept_.rows == 0) {
      work_ = spectrum_.clone();
      return;
    }
    decode_work();
    cpu_backend().subtract_from(spectrum_, nullptr, num_threads(), work_);
  }

  // work = Ã - L.
  void without_factors(const Factors& factors) {
    if (factors.empty()) {
      work_ = spectrum_.clone();
    } else {
      make_room();
      subtract(factors, spectrum_);
    }
  }

  // work = from - L.
  void subtract(const Factors& factors, const ComplexMatrix& from) {
    cpu_backend().subtract_low_rank(from, factors.left.decoded, factors.right.decoded,
                                    num_threads(), work_);
  }

  // work = Q.
  void decode_work() {
    make_room();
    decode_entries(kept_.packed.data(), kept_.row_scale.data(), kept_.rows, kept_.cols, book_, 0,
                   kept_.rows, work_.real(), work_.imag());
  }

  void make_room() {
    if (work_.empty()) work_ = ComplexMatrix(spectrum_.rows(), spectrum_.cols());
  }

  // matrix = matrix · R.
  void weigh(ComplexMatrix& matrix) const {
    if (weight_.filter != nullptr) {
      cpu_backend().apply_filter(*weight_.filter, num_threads(), matrix);
    } else if (!weight_.column.empty()) {
      scale_columns(matrix, weight_.column);
    }
  }

  // What an error matrix costs; it is weighted in place.
  double weighted_energy(ComplexMatrix& matrix) const {
    std::vector<double> rows(matrix.rows());
    if (weight_.filter != nullptr) weigh(matrix);
    cpu_backend().row_energies(matrix, squared_weight_.empty() ? nullptr : squared_weight_.data(),
                               num_threads(), rows);
    return std::accumulate(rows.begin(), rows.end(), 0.0);
  }

  void unbias(const Factors& factors) {
    without_factors(factors);
    const ComplexMatrix target = std::exchange(work_, ComplexMatrix());
    decode_work();
    for (Index k = 0; k < target.rows(); ++k) {
      std::uint16_t& scale = kept_.row_scale[k];
      scale = unbiased_scale(scale, row_product(target, target, k), row_product(target, work_, k));
    }
  }

  // Re <row k of x, row k of y>, with the squared column weights if there are any.
  double row_product(const ComplexMatrix& x, const ComplexMatrix& y, Index k) const {
    const Index cols = x.cols(), first = k * cols;
    double total = 0;
    for (Index l = 0; l < cols; ++l) {
      const double weight = squared_weight_.empty() ? 1.0 : squared_weight_[l];
      total += weight * (x.real()[first + l] * y.real()[first + l] +
                         x.imag()[first + l] * y.imag()[first + l]);
    }
    return total;
  }

  const ComplexMatrix& spectrum_;
  const JointWeight& weight_;
  std::vector<float> squared_weight_;
  CodeBook book_;
  bool refit_scales_;
  PolarCodes found_, kept_;
  ComplexMatrix work_;  // in turn: (Ã - Q) R, then Ã - L
};

// Steps 1 to 4 of a rank of 1 or more.
class Alternation {
 public:
  Alternation(JointStages& stages, const JointOptions& options,
              std::span<const float> column_weight)
      : stages_(stages),
        options_(options),
        column_weight_(column_weight),
        energy_(stages.energy()) {}

  JointSolution solve() {
    JointSolution best;
    Factors kept;
    for (int i = 0; i < options_.max_alternations; ++i) {
      Factors factors = fit_factors();
      const double objective = relative(stages_.encode(factors).error);
      const double previous = i == 0 ? 0.0 : best.objective.back();
      if (i > 0 && !(objective < previous)) break;
      best.objective.push_back(objective);
      stages_.keep();
      kept = std::move(factors);
      if (i > 0 && previous - objective < kLeastImprovement * previous) break;
    }
    refit(best, kept);
    best.codes = stages_.codes(kept, options_.unbiased);
    best.left = std::move(kept.left);
    best.right = std::move(kept.right);
    return best;
  }

 private:
  double relative(double error) const { return energy_ > 0 ? error / energy_ : 0.0; }

  // Truncated SVD of what the codes leave, in stored form.
  Factors fit_factors() {
    SvdOptions svd;
    svd.rank = options_.rank;
    svd.seed = options_.seed ^ kSketchStream;
    const bool warm = !warm_start_.empty();
    svd.power_iterations = warm ? 0 : 2;
    svd.oversampling = kJointOversampling;
    TruncatedSvd result = stages_.decompose(svd, warm ? &warm_start_ : nullptr);
    Factors factors;
    factors.left = store_factor(scaled_transpose(result.left_vectors, result.singular_values),
                                options_.factor_bits);
    factors.right = store_factor(right_factor(result), options_.factor_bits);
    warm_start_ = std::move(result.right_vectors);
    return factors;
  }

  // Σ^1/2 Vᴴ R⁻¹.
  ComplexMatrix right_factor(const TruncatedSvd& svd) {
    const std::optional<ComplexMatrix> projected = stages_.project(svd.left_vectors);
    if (!projected) return scaled_rows(svd.right_vectors, svd.singular_values, column_weight_);
    return scaled_rows(*projected, reciprocals(svd.singular_values), {});
  }

  void refit(JointSolution& best, Factors& kept) {
    Factors factors = fit_factors();
    const double objective = relative(stages_.error(factors));
    if (!(objective < best.objective.back())) return;
    best.objective.push_back(objective);
    kept = std::move(factors);
  }

  JointStages& stages_;
  const JointOptions& options_;
  std::span<const float> column_weight_;
  double energy_;
  ComplexMatrix warm_start_;
};

// Codes alone.
JointSolution encode(JointStages& stages, const JointOptions& options) {
  const CodingCost cost = stages.encode({});
  stages.keep();
  return {stages.codes({}, options.unbiased),
          {},
          {},
          {cost.energy > 0 ? cost.error / cost.energy : 0.0}};
}

}  // namespace

StoredFactor store_factor(ComplexMatrix&& factor, int factor_bits) {
  StoredFactor stored;
  if (factor_bits == kFactorBitsFloat16) {
    stored.float16.resize(2 * factor.count());
    for (Index i = 0; i < factor.count(); ++i) {
      const std::uint16_t re = float_to_half(factor.real()[i]),
                          im = float_to_half(factor.imag()[i]);
      stored.float16[2 * i] = re;
      stored.float16[2 * i + 1] = im;
      factor.real()[i] = half_to_float(re);
      factor.imag()[i] = half_to_float(im);
    }
  } else {
    stored.codes =
        polar_encode(factor, constellation(Codec::ring, factor_bits), /*write_back=*/true);
  }
  stored.decoded = std::move(factor);
  return stored;
}

std::uint16_t unbiased_scale(std::uint16_t row_scale, double energy, double carried) {
  if (!(carried > 0)) return row_scale;
  const double gain = std::clamp(energy / carried, 1.0, kLargestGain);
  const double enlarged = gain * half_to_float(row_scale);
  return float_to_half(static_cast<float>(std::min(enlarged, double{kLargestHalf})));
}

void validate(const JointOptions& options) {
  require_argument((options.factor_bits >= kMinCodeBits && options.factor_bits <= kMaxCodeBits) ||
                       options.factor_bits == kFactorBitsFloat16,
                   "factor_bits is ", options.factor_bits, ", expected 1 to 10, or 16");
  require_argument(options.max_alternations >= 1, "max_alternations is ", options.max_alternations,
                   ", expected 1 or more");
}

JointSolution alternate(JointStages& stages, const JointOptions& options,
                        std::span<const float> column_weight) {
  return options.rank == 0 ? encode(stages, options)
                           : Alternation(stages, options, column_weight).solve();
}

JointSolution solve_joint(const ComplexMatrix& spectrum, const JointOptions& options,
                          const JointWeight& weight) {
  const Index largest = std::min(spectrum.rows(), spectrum.cols());
  require_argument(options.rank >= 0 && options.rank <= largest, "rank is ", options.rank,
                   ", expected 0 to ", largest, " for a half spectrum of shape (", spectrum.rows(),
                   ", ", spectrum.cols(), ")");
  validate(options);
  require_argument(weight.column.empty() || weight.filter == nullptr,
                   "expected column weights or a feedback filter, got both");
  require_argument(
      weight.column.empty() || static_cast<Index>(weight.column.size()) == spectrum.cols(),
      "column_weight has length ", weight.column.size(), ", expected ", spectrum.cols());
  require_argument(weight.filter == nullptr || weight.filter->size == spectrum.cols(),
                   "the feedback filter has size ", weight.filter ? weight.filter->size : 0,
                   ", expected ", spectrum.cols());
  HostJointStages stages(spectrum, options, weight);
  return alternate(stages, options, weight.column);
}

}  // namespace llava_fa

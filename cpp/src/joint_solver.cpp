// Alternation between low rank and codes:
//
// 1. L ← truncated SVD of (Ã - Q) R, un-weighted, rounded to its stored form; Q = 0 at first, and
//    later passes start warm from the previous right factor. R is the root of the error's weight.
// 2. Q ← codes of Ã - L, with feedback if R is triangular; objective ||(Ã - L - Q) R||^2.
// 3. Repeat while the objective falls by 0.1 % or more; the best iterate is kept.
// 4. One more step 1 for the best Q, kept only if it lowers the objective.
#include "llava_fa/joint_solver.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend.hpp"
#include "checks.hpp"
#include "code_book.hpp"
#include "half_float.hpp"
#include "llava_fa/low_rank.hpp"
#include "llava_fa/runtime.hpp"
#include "weight_stages.hpp"

namespace llava_fa {
namespace {

constexpr double kLeastImprovement = 1e-3;
constexpr double kLargestGain = 4.0;  // codes that carry less than that of a row are no estimate
// Fewer columns than default_oversampling: every pass pays for them, and a pass starts from where
// the last one ended, so that a subspace not found at once is found on the way.
constexpr Index kOversampling = 10;
constexpr std::uint64_t kSketchStream = 0x51a7e5eed0000000ull;  // apart from the signs' seeds

struct Factors {
  StoredFactor left;
  StoredFactor right;
};

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

void scale_columns(ComplexMatrix& matrix, std::span<const float> factor) {
  for (Index k = 0; k < 2 * matrix.rows(); ++k) {
    float* row = matrix.real() + k * matrix.cols();
    for (Index l = 0; l < matrix.cols(); ++l) row[l] *= factor[l];
  }
}

class Alternation {
 public:
  Alternation(const ComplexMatrix& spectrum, const JointOptions& options, const JointWeight& weight)
      : spectrum_(spectrum),
        options_(options),
        weight_(weight),
        book_{options.codec, options.code_bits, options.state_bits},
        work_(spectrum.clone()) {
    for (const float d : weight_.column) squared_weight_.push_back(d * d);
  }

  JointSolution solve() {
    JointSolution best;
    if (options_.rank == 0) {
      EncodedEntries encoded = encode_work(/*write_back=*/false);
      best.objective.push_back(encoded.energy > 0 ? encoded.error / encoded.energy : 0.0);
      best.codes = std::move(encoded.codes);
      unbias(best);
      return best;
    }
    energy_ = weighted_energy(spectrum_.clone());
    for (int i = 0; i < options_.max_alternations; ++i) {
      if (i > 0) subtract_codes();
      weigh_work();
      Factors factors = fit_factors();
      subtract_factors(spectrum_, factors);
      EncodedEntries encoded = encode_work(/*write_back=*/true);
      const double objective = relative(encoded.error);
      const double previous = i == 0 ? 0.0 : best.objective.back();
      if (i > 0 && !(objective < previous)) break;
      best.objective.push_back(objective);
      keep(best, std::move(factors), std::move(encoded.codes));
      if (i > 0 && previous - objective < kLeastImprovement * previous) break;
    }
    refit(best);
    unbias(best);
    return best;
  }

 private:
  double relative(double error) const { return energy_ > 0 ? error / energy_ : 0.0; }

  // What an error matrix costs; consumes it.
  double weighted_energy(ComplexMatrix&& matrix) const {
    std::vector<double> rows(matrix.rows());
    if (weight_.filter != nullptr) {
      cpu_backend().apply_filter(*weight_.filter, num_threads(), matrix);
    }
    cpu_backend().row_energies(matrix, squared_weight_.empty() ? nullptr : squared_weight_.data(),
                               num_threads(), rows);
    return std::accumulate(rows.begin(), rows.end(), 0.0);
  }

  // work = Ã - Q from work = Q.
  void subtract_codes() { cpu_backend().subtract_from(spectrum_, nullptr, num_threads(), work_); }

  // work = work · diag(d), or work · R.
  void weigh_work() {
    if (weight_.filter != nullptr) {
      cpu_backend().apply_filter(*weight_.filter, num_threads(), work_);
    } else if (!weight_.column.empty()) {
      scale_columns(work_, weight_.column);
    }
  }

  // Truncated SVD of work, in stored form.
  Factors fit_factors() {
    SvdOptions svd;
    svd.rank = options_.rank;
    svd.seed = options_.seed ^ kSketchStream;
    const bool warm = !warm_start_.empty();
    svd.power_iterations = warm ? 0 : 2;
    svd.oversampling = kOversampling;
    TruncatedSvd result = randomized_svd(work_, svd, warm ? &warm_start_ : nullptr);
    Factors factors;
    factors.left = store_factor(scaled_transpose(result.left_vectors, result.singular_values),
                                options_.factor_bits);
    ComplexMatrix right = scaled_rows(result.right_vectors, result.singular_values, weight_.column);
    if (weight_.filter != nullptr) {
      cpu_backend().solve_filter(*weight_.filter, num_threads(), right);
    }
    factors.right = store_factor(std::move(right), options_.factor_bits);
    warm_start_ = std::move(result.right_vectors);
    return factors;
  }

  // work = from - L1 L2.
  void subtract_factors(const ComplexMatrix& from, const Factors& factors) {
    cpu_backend().subtract_low_rank(from, factors.left.decoded, factors.right.decoded,
                                    num_threads(), work_);
  }

  // Codes of work; work becomes the decoded Q if write_back.
  EncodedEntries encode_work(bool write_back) {
    const bool refit = !options_.unbiased || weight_.filter == nullptr;
    return encode_entries(work_, book_, {squared_weight_, weight_.filter, refit}, write_back);
  }

  static void keep(JointSolution& best, Factors&& factors, PolarCodes&& codes) {
    best.left = std::move(factors.left);
    best.right = std::move(factors.right);
    best.codes = std::move(codes);
  }

  void refit(JointSolution& best) {
    decode_work(best.codes);
    subtract_codes();
    weigh_work();
    Factors factors = fit_factors();
    decode_work(best.codes);
    subtract_codes();
    subtract_factors(work_, factors);
    const double objective = relative(weighted_energy(std::move(work_)));
    if (!(objective < best.objective.back())) return;
    best.objective.push_back(objective);
    best.left = std::move(factors.left);
    best.right = std::move(factors.right);
  }

  // Under a filter the codes were found unbiased in every direction (encode_entries); what the
  // filter's metric would see of them here misses the directions of little input.
  void unbias(JointSolution& best) {
    if (!options_.unbiased || weight_.filter != nullptr) return;
    ComplexMatrix target = spectrum_.clone();
    if (options_.rank > 0) {
      cpu_backend().subtract_low_rank(spectrum_, best.left.decoded, best.right.decoded,
                                      num_threads(), target);
    }
    work_ = ComplexMatrix(spectrum_.rows(), spectrum_.cols());
    decode_work(best.codes);
    for (Index k = 0; k < target.rows(); ++k) {
      std::uint16_t& scale = best.codes.row_scale[k];
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

  // work = Q.
  void decode_work(const PolarCodes& codes) {
    decode_entries(codes.packed.data(), codes.row_scale.data(), codes.rows, codes.cols, book_, 0,
                   codes.rows, work_.real(), work_.imag());
  }

  const ComplexMatrix& spectrum_;
  const JointOptions& options_;
  const JointWeight& weight_;
  std::vector<float> squared_weight_;
  CodeBook book_;
  double energy_ = 0;
  ComplexMatrix work_;  // in turn: (Ã - Q) R, then Ã - L, then Q
  ComplexMatrix warm_start_;
};

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
  return Alternation(spectrum, options, weight).solve();
}

}  // namespace llava_fa

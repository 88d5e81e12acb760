// From a dense weight to a packed matrix: the pipeline, one call per stage.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "checks.hpp"
#include "half_float.hpp"
#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/spectrum.hpp"
#include "weight_stages.hpp"

namespace llava_fa {

// Assembles the stored tensors of one matrix from trusted parts.
struct PackedMatrixBuilder {
  explicit PackedMatrixBuilder(const MatrixSpec& spec) {
    matrix.spec_ = spec;
    matrix.layout_ = tensor_layout(spec);
    matrix.storage_.resize(matrix.layout_.size());
    const Header header = encode_header(spec);
    put("header", header.data(), sizeof(header));
  }

  void put(std::string_view name, const void* data, std::size_t bytes) {
    const std::size_t index = matrix.index_of(name);
    require_argument(matrix.layout_[index].bytes() == static_cast<Index>(bytes),
                     "internal size mismatch of ", name);
    matrix.storage_[index] = PackedMatrix::copied(data, matrix.layout_[index].bytes());
  }

  template <typename T>
  void put(std::string_view name, const std::vector<T>& values) {
    put(name, values.data(), values.size() * sizeof(T));
  }

  // After all tensors are put.
  PackedMatrix finish() {
    matrix.prepare();
    return std::move(matrix);
  }

  void put_scales(std::string_view name, const std::vector<float>& scales) {
    std::vector<std::uint16_t> halves(scales.size());
    std::transform(scales.begin(), scales.end(), halves.begin(), float_to_half);
    put(name, halves);
  }

  void put_factor(const std::string& name, const StoredFactor& factor) {
    if (!factor.float16.empty()) return put(name, factor.float16);
    put(name, factor.codes.packed);
    put(name + "_scale", factor.codes.row_scale);
  }

  PackedMatrix matrix;
};

namespace {

std::vector<float> reciprocals(const std::vector<float>& scales) {
  std::vector<float> out(scales.size());
  std::transform(scales.begin(), scales.end(), out.begin(), [](float s) { return 1.0f / s; });
  return out;
}

// Sum of squares of the weight before the transform.
double scaled_energy(WeightStages& stages, const ChannelEnergies& unscaled,
                     const DiagonalScales& scales) {
  if (scales.in.empty() && scales.out.empty()) return unscaled.total();
  return stages.energies(reciprocals(scales.out), reciprocals(scales.in)).total();
}

// Root mean square of the scaled weight, at least the smallest normal float so that dividing by it
// stays finite; 0 for a zero matrix.
float root_mean_square(double energy, Index rows, Index cols) {
  if (energy == 0) return 0.0f;
  const double count = static_cast<double>(rows) * static_cast<double>(cols);
  const double rms = std::sqrt(energy / count);
  return static_cast<float>(std::clamp(rms, 0x1.0p-126, 0x1.fffffep127));
}

// Multiplier of each channel before the transform: sign / (decode scale · divisor).
std::vector<float> encode_multiplier(std::vector<float> signs, const std::vector<float>& scales,
                                     double divisor) {
  for (std::size_t j = 0; j < signs.size(); ++j) {
    const double scale = scales.empty() ? divisor : divisor * scales[j];
    signs[j] = static_cast<float>(signs[j] / scale);
  }
  return signs;
}

// What the activations are multiplied by before the transform: sign · decode scale.
std::vector<float> signed_scales(std::vector<float> signs, const std::vector<float>& scales) {
  for (std::size_t j = 0; j < scales.size(); ++j) signs[j] *= scales[j];
  return signs;
}

std::vector<float> signs_or_ones(bool signs, std::uint64_t seed, int stream, Index count) {
  return signs ? random_signs(seed, stream, count) : std::vector<float>(count, 1.0f);
}

// Feedback moves the noise to where the input has little power, whatever the scales: they are left
// with making the weight's own columns equal.
SecondMoments scale_moments(SecondMoments moments, bool fed_back) {
  if (fed_back) moments.input_diagonal = {};
  return moments;
}

// A weight in the host's memory.
class HostStages final : public WeightStages {
 public:
  explicit HostStages(const MatrixView& weight) : weight_(weight) {}

  ChannelEnergies energies(std::span<const float> output_multiplier,
                           std::span<const float> input_multiplier) override {
    return channel_energies(weight_, output_multiplier, input_multiplier);
  }

  void feed_back(const MatrixView& second_moment,
                 std::span<const float> input_multiplier) override {
    filter_ = feedback_filter(second_moment, input_multiplier);
  }

  JointSolution solve(std::span<const float> output_multiplier,
                      std::span<const float> input_multiplier, const JointOptions& options,
                      std::span<const float> column_weight) override {
    return solve_joint(half_spectrum(weight_, output_multiplier, input_multiplier), options,
                       {column_weight, filter_ ? &*filter_ : nullptr});
  }

 private:
  const MatrixView& weight_;
  std::optional<FeedbackFilter> filter_;
};

}  // namespace

MatrixSpec spec_of(Index rows, Index cols, const CompressionOptions& options) {
  MatrixSpec spec;
  spec.rows = rows;
  spec.cols = cols;
  spec.codec = options.joint.codec;
  spec.code_bits = options.joint.code_bits;
  spec.rank = options.joint.rank;
  spec.factor_bits = options.joint.factor_bits;
  spec.signs = options.signs;
  spec.seed = options.joint.seed;
  spec.state_bits = options.joint.codec == Codec::trellis ? options.joint.state_bits : 0;
  return spec;
}

bool codes_with_feedback(const CompressionOptions& options, const SecondMoments& moments) {
  return options.feedback && !moments.input_full.empty();
}

CompressionResult compress_matrix(const MatrixView& weight, const CompressionOptions& options,
                                  const SecondMoments& moments) {
  HostStages stages(weight);
  return compress_weight(stages, weight.rows, weight.cols, options, moments);
}

CompressionResult compress_weight(WeightStages& stages, Index rows, Index cols,
                                  const CompressionOptions& options, const SecondMoments& moments) {
  MatrixSpec spec = spec_of(rows, cols, options);
  validate(spec);
  validate(moments, rows, cols);
  const ChannelEnergies energies = stages.energies({}, {});
  const bool fed_back = codes_with_feedback(options, moments);
  const DiagonalScales scales = options.odc == Odc::spatial
                                    ? diagonal_scales(energies, scale_moments(moments, fed_back))
                                    : DiagonalScales{};
  spec.channel_scale_in = !scales.in.empty();
  spec.channel_scale_out = !scales.out.empty();
  const float matrix_scale = root_mean_square(scaled_energy(stages, energies, scales), rows, cols);
  const double divisor = matrix_scale > 0 ? matrix_scale : 1.0;

  const std::vector<float> input_signs =
      signs_or_ones(spec.signs, spec.seed, kInputSignStream, cols);
  const std::vector<float> output_multiplier = encode_multiplier(
      signs_or_ones(spec.signs, spec.seed, kOutputSignStream, rows), scales.out, divisor);
  const std::vector<float> input_multiplier = encode_multiplier(input_signs, scales.in, 1.0);
  std::vector<float> column_weight;
  if (fed_back) {
    stages.feed_back({moments.input_full.data(), cols, cols, cols},
                     signed_scales(input_signs, scales.in));
  } else if (options.odc == Odc::spectral) {
    column_weight = spectral_column_weights(cols, moments, input_signs);
  }
  JointSolution solution =
      stages.solve(output_multiplier, input_multiplier, options.joint, column_weight);

  PackedMatrixBuilder builder(spec);
  builder.put("matrix_scale", &matrix_scale, sizeof(matrix_scale));
  builder.put("codes", solution.codes.packed);
  builder.put("row_scale", solution.codes.row_scale);
  if (spec.channel_scale_in) builder.put_scales("channel_scale_in", scales.in);
  if (spec.channel_scale_out) builder.put_scales("channel_scale_out", scales.out);
  if (spec.rank > 0) {
    builder.put_factor("low_rank_left", solution.left);
    builder.put_factor("low_rank_right", solution.right);
  }
  return {builder.finish(), std::move(solution.objective)};
}

}  // namespace llava_fa

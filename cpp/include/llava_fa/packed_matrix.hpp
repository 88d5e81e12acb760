// A compressed weight matrix: the in-memory form of the file's tensors (design section 8,
// docs/format.md), from a dense weight and back.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "llava_fa/calibration.hpp"
#include "llava_fa/joint_solver.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

inline constexpr std::int64_t kFormatVersion = 3;
inline constexpr Index kHeaderLength = 10;
// Bounds that keep every size computation far from overflow.
inline constexpr Index kMaxChannels = Index{1} << 28;

// Everything static about one stored matrix; determines the shape of each of its tensors.
struct MatrixSpec {
  Index rows = 0;  // m, output channels
  Index cols = 0;  // n, input channels
  Codec codec = Codec::ring;
  int code_bits = 8;
  Index rank = 0;
  int factor_bits = 8;
  bool signs = true;
  std::uint64_t seed = 0;
  bool channel_scale_in = false;
  bool channel_scale_out = false;
  int state_bits = 0;  // `trellis`: 8 to 16; 0 for the other codecs

  bool operator==(const MatrixSpec&) const = default;
};

// Throws Error(invalid_argument) naming the field that is out of range.
void validate(const MatrixSpec& spec);

using Header = std::array<std::int64_t, kHeaderLength>;
Header encode_header(const MatrixSpec& spec);
// Throws Error(inconsistent_format) on another version or any field out of range.
MatrixSpec decode_header(std::span<const std::int64_t> header);

enum class StoredType { uint8, int64, float16, float32 };
Index item_size(StoredType type);

struct TensorLayout {
  std::string name;  // suffix after the module name: "codes", "row_scale", ...
  StoredType type;
  std::vector<Index> shape;

  Index count() const;
  Index bytes() const { return count() * item_size(type); }
};

// The tensors that `spec` stores, in file order.
std::vector<TensorLayout> tensor_layout(const MatrixSpec& spec);

// What a tensor's bytes must look like to be read. Without an owner the caller's bytes are copied;
// with one they are used in place, kept alive by it, and must not change while the matrix exists.
struct TensorView {
  std::string_view name;
  const std::byte* data = nullptr;
  Index bytes = 0;
  std::shared_ptr<const void> owner = nullptr;
};

class PackedMatrix {
 public:
  // Takes and validates untrusted tensors: names, sizes, header, finite non-negative scales, zero
  // padding bits. Bytes that have an owner but not their type's alignment are copied all the same.
  // Throws Error(inconsistent_format) naming the tensor.
  static PackedMatrix from_tensors(std::span<const TensorView> tensors);

  const MatrixSpec& spec() const { return spec_; }
  // Raw bytes of a stored tensor. Throws Error(invalid_argument) if the spec has none of that name.
  std::span<const std::byte> tensor(std::string_view name) const;
  // All stored bytes: header, codes, scales, factors, padding.
  Index bytes() const;

  // Pieces in decoded form, as run-time stages need them.
  float matrix_scale() const;
  std::span<const std::uint16_t> row_scale() const;
  std::span<const std::uint8_t> codes() const;
  // Decoded codes of rows [first_row, first_row + row_count), planes of (row_count, cols).
  void decode_rows(Index first_row, Index row_count, float* real, float* imag) const;
  // What the channels of the decoded matrix are multiplied with, (n) and (m): signs, scales, and
  // for the output channels the matrix scale. Computed once; copies of a matrix share them.
  std::span<const float> input_multiplier() const { return multipliers_->input; }
  std::span<const float> output_multiplier() const { return multipliers_->output; }
  // (rank, half_rows) and (rank, cols); empty if rank is 0.
  ComplexMatrix low_rank_left() const;
  ComplexMatrix low_rank_right() const;

  // Dense weight, rows * cols floats, row-major.
  void decode(float* weight_out) const;

 private:
  friend struct PackedMatrixBuilder;
  struct ChannelMultipliers {
    std::vector<float> input, output;
  };

  // Computes what products need besides the stored tensors, once these are complete.
  void prepare();
  // Place of a tensor in the layout. Throws Error(invalid_argument) if there is none of that name.
  std::size_t index_of(std::string_view name) const;
  static std::shared_ptr<const std::byte> copied(const void* data, Index bytes);

  MatrixSpec spec_;
  std::vector<TensorLayout> layout_;
  // One per tensor of the layout; copies of a matrix share them, as nothing changes them.
  std::vector<std::shared_ptr<const std::byte>> storage_;
  std::shared_ptr<const ChannelMultipliers> multipliers_;
};

struct CompressionOptions {
  JointOptions joint;
  Odc odc = Odc::spatial;
  bool signs = true;
  bool feedback = true;  // with a full input second moment, code under error feedback
};

struct CompressionResult {
  PackedMatrix matrix;
  std::vector<double> objective;  // JointSolution::objective
};

// weight (m, n) float32 → packed matrix.
// Throws Error(non_finite) if the weight has NaN or infinite entries (naming the first), and
// Error(invalid_argument) for options out of range or a rank above min(m/2 + 1, n).
CompressionResult compress_matrix(const MatrixView& weight, const CompressionOptions& options,
                                  const SecondMoments& moments = {});

}  // namespace llava_fa

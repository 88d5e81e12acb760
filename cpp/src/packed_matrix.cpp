// Packed matrices: layout, validation of untrusted tensors, and the way from a weight to its bytes
// and back.
#include "llava_fa/packed_matrix.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend.hpp"
#include "checks.hpp"
#include "code_book.hpp"
#include "code_panels.hpp"
#include "half_float.hpp"
#include "llava_fa/runtime.hpp"
#include "llava_fa/spectrum.hpp"

static_assert(std::endian::native == std::endian::little, "stored tensors are little-endian");

namespace llava_fa {
namespace {

constexpr std::int64_t kSigns = 1, kScaleIn = 2, kScaleOut = 4, kAllFlags = 7;

template <typename... Parts>
void require_format(bool condition, const Parts&... parts) {
  require(condition, ErrorCode::inconsistent_format, parts...);
}

template <typename T>
std::span<const T> as(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
}

bool padding_is_zero(std::span<const std::uint8_t> packed, Index rows, Index cols, int bits) {
  const Index row_bytes = packed_row_bytes(cols, bits);
  const int used = static_cast<int>(cols * bits % 8);
  if (used == 0) return true;
  for (Index k = 0; k < rows; ++k) {
    const RowPlace place = row_place(rows, row_bytes, k);
    if (packed[place.offset + (row_bytes - 1) * place.stride] >> used != 0) return false;
  }
  return true;
}

void check_float16(std::span<const std::byte> bytes, const std::string& name, bool signed_values) {
  const auto values = as<std::uint16_t>(bytes);
  for (std::size_t i = 0; i < values.size(); ++i) {
    require_format(half_is_finite(values[i]), name, "[", i, "] is not finite");
    require_format(signed_values || values[i] < 0x8000, name, "[", i, "] is ",
                   half_to_float(values[i]), ", expected a scale of 0 or more");
  }
}

}  // namespace

void validate(const MatrixSpec& spec) {
  require_argument(
      spec.rows >= 1 && spec.rows <= kMaxChannels && spec.cols >= 1 && spec.cols <= kMaxChannels,
      "shape is (", spec.rows, ", ", spec.cols, "), expected 1 to ", kMaxChannels);
  require_argument(spec.codec >= Codec::uniform && spec.codec <= Codec::trellis, "codec id is ",
                   static_cast<int>(spec.codec), ", expected 0 to 3");
  const bool trellis_coded = spec.codec == Codec::trellis;
  const int most_bits = trellis_coded ? kMaxTrellisCodeBits : kMaxCodeBits;
  require_argument(spec.code_bits >= kMinCodeBits && spec.code_bits <= most_bits, "code_bits is ",
                   spec.code_bits, ", expected 1 to ", most_bits, " for ", codec_name(spec.codec));
  require_argument(trellis_coded
                       ? spec.state_bits >= kMinStateBits && spec.state_bits <= kMaxStateBits
                       : spec.state_bits == 0,
                   "state_bits is ", spec.state_bits, ", expected ", kMinStateBits, " to ",
                   kMaxStateBits, " for trellis and 0 for other codecs");
  const Index largest = std::min(half_rows(spec.rows), spec.cols);
  require_argument(spec.rank >= 0 && spec.rank <= largest, "rank is ", spec.rank,
                   ", expected 0 to ", largest, " for a weight of shape (", spec.rows, ", ",
                   spec.cols, ")");
  require_argument((spec.factor_bits >= kMinCodeBits && spec.factor_bits <= kMaxCodeBits) ||
                       spec.factor_bits == kFactorBitsFloat16,
                   "factor_bits is ", spec.factor_bits, ", expected 1 to 10, or 16");
}

Header encode_header(const MatrixSpec& spec) {
  const std::int64_t flags = (spec.signs ? kSigns : 0) | (spec.channel_scale_in ? kScaleIn : 0) |
                             (spec.channel_scale_out ? kScaleOut : 0);
  return {kFormatVersion,
          spec.rows,
          spec.cols,
          spec.code_bits,
          static_cast<std::int64_t>(spec.codec),
          spec.rank,
          spec.factor_bits,
          flags,
          static_cast<std::int64_t>(spec.seed),
          spec.state_bits};
}

MatrixSpec decode_header(std::span<const std::int64_t> header) {
  require_format(static_cast<Index>(header.size()) == kHeaderLength, "header has ", header.size(),
                 " entries, expected ", kHeaderLength);
  require_format(header[0] == kFormatVersion, "header has format version ", header[0],
                 ", this library reads version ", kFormatVersion,
                 header[0] > kFormatVersion ? ": install a newer llava-fa"
                 : header[0] > 0            ? ": compress the model again"
                                            : "");
  require_format((header[7] & ~kAllFlags) == 0, "header has unknown flags ", header[7]);
  constexpr std::int64_t kSmall = std::numeric_limits<int>::max();
  for (int field : {3, 4, 6, 9}) {
    require_format(header[field] >= 0 && header[field] <= kSmall, "header field ", field, " is ",
                   header[field]);
  }
  MatrixSpec spec;
  spec.rows = header[1];
  spec.cols = header[2];
  spec.code_bits = static_cast<int>(header[3]);
  spec.codec = static_cast<Codec>(header[4]);
  spec.rank = header[5];
  spec.factor_bits = static_cast<int>(header[6]);
  spec.signs = (header[7] & kSigns) != 0;
  spec.channel_scale_in = (header[7] & kScaleIn) != 0;
  spec.channel_scale_out = (header[7] & kScaleOut) != 0;
  spec.seed = static_cast<std::uint64_t>(header[8]);
  spec.state_bits = static_cast<int>(header[9]);
  try {
    validate(spec);
  } catch (const Error& error) {
    throw Error(ErrorCode::inconsistent_format, concat("header: ", error.what()));
  }
  return spec;
}

Index item_size(StoredType type) {
  switch (type) {
    case StoredType::uint8: return 1;
    case StoredType::float16: return 2;
    case StoredType::float32: return 4;
    case StoredType::int64: return 8;
  }
  return 0;
}

Index TensorLayout::count() const {
  Index product = 1;
  for (const Index extent : shape) product *= extent;
  return product;
}

std::vector<TensorLayout> tensor_layout(const MatrixSpec& spec) {
  validate(spec);
  const Index half = half_rows(spec.rows);
  std::vector<TensorLayout> layout = {
      {"header", StoredType::int64, {kHeaderLength}},
      {"matrix_scale", StoredType::float32, {1}},
      {"codes", StoredType::uint8, {half, packed_row_bytes(spec.cols, spec.code_bits)}},
      {"row_scale", StoredType::float16, {half}},
  };
  if (spec.channel_scale_in) {
    layout.push_back({"channel_scale_in", StoredType::float16, {spec.cols}});
  }
  if (spec.channel_scale_out) {
    layout.push_back({"channel_scale_out", StoredType::float16, {spec.rows}});
  }
  if (spec.rank == 0) return layout;
  if (spec.factor_bits == kFactorBitsFloat16) {
    layout.push_back({"low_rank_left", StoredType::float16, {spec.rank, half, 2}});
    layout.push_back({"low_rank_right", StoredType::float16, {spec.rank, spec.cols, 2}});
    return layout;
  }
  layout.push_back(
      {"low_rank_left", StoredType::uint8, {spec.rank, packed_row_bytes(half, spec.factor_bits)}});
  layout.push_back({"low_rank_left_scale", StoredType::float16, {spec.rank}});
  layout.push_back({"low_rank_right",
                    StoredType::uint8,
                    {spec.rank, packed_row_bytes(spec.cols, spec.factor_bits)}});
  layout.push_back({"low_rank_right_scale", StoredType::float16, {spec.rank}});
  return layout;
}

std::size_t PackedMatrix::index_of(std::string_view name) const {
  for (std::size_t i = 0; i < layout_.size(); ++i) {
    if (layout_[i].name == name) return i;
  }
  throw Error(ErrorCode::invalid_argument, concat("this matrix stores no tensor \"", name, "\""));
}

std::shared_ptr<const std::byte> PackedMatrix::copied(const void* data, Index bytes) {
  const std::shared_ptr<std::byte[]> copy(new std::byte[static_cast<std::size_t>(bytes)]);
  std::memcpy(copy.get(), data, static_cast<std::size_t>(bytes));
  return {copy, copy.get()};
}

std::span<const std::byte> PackedMatrix::tensor(std::string_view name) const {
  const std::size_t i = index_of(name);
  return {storage_[i].get(), static_cast<std::size_t>(layout_[i].bytes())};
}

Index PackedMatrix::bytes() const {
  Index total = 0;
  for (const TensorLayout& tensor : layout_) total += tensor.bytes();
  return total;
}

namespace {

const TensorView& find_tensor(std::span<const TensorView> tensors, std::string_view name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const TensorView& view) { return view.name == name; });
  require_format(found != tensors.end(), "tensor \"", name, "\" is missing");
  return *found;
}

MatrixSpec read_header(const TensorView& header) {
  require_format(header.bytes == kHeaderLength * 8, "header has ", header.bytes,
                 " bytes, expected ", kHeaderLength * 8);
  Header fields;
  std::memcpy(fields.data(), header.data, sizeof(fields));
  return decode_header(fields);
}

// Values that no encoder writes: scales that are not finite or negative, padding bits that are set.
void check_values(const MatrixSpec& spec, const TensorLayout& tensor,
                  std::span<const std::byte> bytes) {
  if (tensor.type == StoredType::float16) {
    check_float16(bytes, tensor.name, /*signed_values=*/tensor.shape.size() == 3);
  } else if (tensor.type == StoredType::float32) {
    const float value = as<float>(bytes)[0];
    require_format(std::isfinite(value) && value >= 0, tensor.name, " is ", value,
                   ", expected a finite scale of 0 or more");
  } else if (tensor.type == StoredType::uint8) {
    const Index cols = tensor.name == "low_rank_left" ? half_rows(spec.rows) : spec.cols;
    const int bits = tensor.name == "codes" ? spec.code_bits : spec.factor_bits;
    require_format(padding_is_zero(as<std::uint8_t>(bytes), tensor.shape[0], cols, bits),
                   "tensor \"", tensor.name, "\" has non-zero padding bits");
  }
}

bool usable_in_place(const TensorView& view, StoredType type) {
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  return view.owner && address % static_cast<std::uintptr_t>(item_size(type)) == 0;
}

}  // namespace

PackedMatrix PackedMatrix::from_tensors(std::span<const TensorView> tensors) {
  PackedMatrix matrix;
  matrix.spec_ = read_header(find_tensor(tensors, "header"));
  matrix.layout_ = tensor_layout(matrix.spec_);
  for (const TensorLayout& expected : matrix.layout_) {
    const TensorView& view = find_tensor(tensors, expected.name);
    require_format(view.bytes == expected.bytes(), "tensor \"", expected.name, "\" has ",
                   view.bytes, " bytes, expected ", expected.bytes());
    matrix.storage_.push_back(usable_in_place(view, expected.type)
                                  ? std::shared_ptr<const std::byte>{view.owner, view.data}
                                  : copied(view.data, view.bytes));
    check_values(matrix.spec_, expected, matrix.tensor(expected.name));
  }
  require_format(tensors.size() == matrix.layout_.size(), "received ", tensors.size(),
                 " tensors, expected ", matrix.layout_.size(), " by the header");
  matrix.prepare();
  return matrix;
}

float PackedMatrix::matrix_scale() const { return as<float>(tensor("matrix_scale"))[0]; }

std::span<const std::uint16_t> PackedMatrix::row_scale() const {
  return as<std::uint16_t>(tensor("row_scale"));
}

std::span<const std::uint8_t> PackedMatrix::codes() const {
  return as<std::uint8_t>(tensor("codes"));
}

namespace {

std::vector<float> channel_multiplier(const MatrixSpec& spec, int stream, Index count,
                                      std::span<const std::uint16_t> scales) {
  std::vector<float> multiplier =
      spec.signs ? random_signs(spec.seed, stream, count) : std::vector<float>(count, 1.0f);
  for (std::size_t j = 0; j < scales.size(); ++j) multiplier[j] *= half_to_float(scales[j]);
  return multiplier;
}

}  // namespace

void PackedMatrix::prepare() {
  std::span<const std::uint16_t> in, out;
  if (spec_.channel_scale_in) in = as<std::uint16_t>(tensor("channel_scale_in"));
  if (spec_.channel_scale_out) out = as<std::uint16_t>(tensor("channel_scale_out"));
  ChannelMultipliers multipliers = {channel_multiplier(spec_, kInputSignStream, spec_.cols, in),
                                    channel_multiplier(spec_, kOutputSignStream, spec_.rows, out)};
  for (float& multiplier : multipliers.output) multiplier *= matrix_scale();
  multipliers_ = std::make_shared<const ChannelMultipliers>(std::move(multipliers));
}

namespace {

ComplexMatrix decode_factor(const PackedMatrix& matrix, const std::string& name, Index length) {
  const MatrixSpec& spec = matrix.spec();
  if (spec.rank == 0) return {};
  ComplexMatrix out(spec.rank, length);
  if (spec.factor_bits == kFactorBitsFloat16) {
    const auto pairs = as<std::uint16_t>(matrix.tensor(name));
    for (Index i = 0; i < out.count(); ++i) {
      out.real()[i] = half_to_float(pairs[2 * i]);
      out.imag()[i] = half_to_float(pairs[2 * i + 1]);
    }
    return out;
  }
  polar_decode_rows(as<std::uint8_t>(matrix.tensor(name)).data(),
                    as<std::uint16_t>(matrix.tensor(name + "_scale")).data(), spec.rank, length,
                    constellation(Codec::ring, spec.factor_bits), 0, spec.rank, out.real(),
                    out.imag());
  return out;
}

}  // namespace

ComplexMatrix PackedMatrix::low_rank_left() const {
  return decode_factor(*this, "low_rank_left", half_rows(spec_.rows));
}

ComplexMatrix PackedMatrix::low_rank_right() const {
  return decode_factor(*this, "low_rank_right", spec_.cols);
}

void PackedMatrix::decode_rows(Index first_row, Index row_count, float* real, float* imag) const {
  const CodeBook book{spec_.codec, spec_.code_bits, spec_.state_bits};
  decode_entries(codes().data(), row_scale().data(), half_rows(spec_.rows), spec_.cols, book,
                 first_row, row_count, real, imag);
}

void PackedMatrix::decode(float* weight_out) const {
  ComplexMatrix spectrum(half_rows(spec_.rows), spec_.cols);
  decode_rows(0, spectrum.rows(), spectrum.real(), spectrum.imag());
  if (spec_.rank > 0) {
    ComplexMatrix minus_right = low_rank_right();
    for (Index i = 0; i < 2 * minus_right.count(); ++i) minus_right.real()[i] *= -1.0f;
    cpu_backend().subtract_low_rank(spectrum, low_rank_left(), minus_right, num_threads(),
                                    spectrum);
  }
  inverse_half_spectrum(std::move(spectrum), spec_.rows, weight_out, output_multiplier(),
                        input_multiplier());
}

}  // namespace llava_fa

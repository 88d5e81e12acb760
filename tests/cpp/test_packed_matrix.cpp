// Packed matrices: round trip through bytes, every corruption refused, hostile weights.
#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <memory>

#include "llava_fa/error.hpp"
#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/runtime.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

CompressionOptions with_rank(Index rank) {
  CompressionOptions options;
  options.joint.code_bits = 7;
  options.joint.rank = rank;
  return options;
}

// Owned copies of a matrix's tensors that a test may damage.
struct StoredTensors {
  explicit StoredTensors(const PackedMatrix& matrix) {
    for (const TensorLayout& tensor : tensor_layout(matrix.spec())) {
      const auto bytes = matrix.tensor(tensor.name);
      names.push_back(tensor.name);
      data.emplace_back(bytes.begin(), bytes.end());
    }
  }
  std::vector<std::byte>& operator[](std::string_view name) {
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (names[i] == name) return data[i];
    }
    throw std::out_of_range("no such tensor");
  }
  PackedMatrix load() const {
    std::vector<TensorView> views;
    for (std::size_t i = 0; i < names.size(); ++i) {
      views.push_back({names[i], data[i].data(), static_cast<Index>(data[i].size())});
    }
    return PackedMatrix::from_tensors(views);
  }
  void set_header(int field, std::int64_t value) {
    std::memcpy((*this)["header"].data() + 8 * field, &value, 8);
  }

  std::vector<std::string> names;
  std::vector<std::vector<std::byte>> data;
};

std::vector<float> decoded(const PackedMatrix& matrix) {
  std::vector<float> out(matrix.spec().rows * matrix.spec().cols);
  matrix.decode(out.data());
  return out;
}

double relative_squared_error(const reference::Dense& weight, const PackedMatrix& matrix) {
  const double ratio =
      reference::distance(decoded(matrix), weight.values) / reference::norm(weight.values);
  return ratio * ratio;
}

ErrorCode code_of_loading(const StoredTensors& tensors) {
  try {
    tensors.load();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::unavailable;  // nothing was thrown
}

}  // namespace

TEST_CASE("bytes decode to the same weight after a round trip") {
  for (const Index rank : {0, 3}) {
    for (const int factor_bits : {5, kFactorBitsFloat16}) {
      const reference::Dense weight = reference::gaussian(33, 20, 61);
      CompressionOptions options = with_rank(rank);
      options.joint.factor_bits = factor_bits;
      const PackedMatrix packed = compress_matrix(weight.view(), options).matrix;
      const PackedMatrix loaded = StoredTensors(packed).load();
      CHECK(loaded.spec() == packed.spec());
      CHECK(decoded(loaded) == decoded(packed));
    }
  }
}

TEST_CASE("bytes with an owner are used in place, and kept alive") {
  const PackedMatrix packed =
      compress_matrix(reference::gaussian(33, 20, 61).view(), with_rank(3)).matrix;
  auto stored = std::make_shared<StoredTensors>(packed);
  const std::byte* codes = (*stored)["codes"].data();
  std::vector<TensorView> views;
  for (std::size_t i = 0; i < stored->names.size(); ++i) {
    const auto& data = stored->data[i];
    views.push_back({stored->names[i], data.data(), static_cast<Index>(data.size()), stored});
  }
  const PackedMatrix loaded = PackedMatrix::from_tensors(views);
  views.clear();
  stored.reset();
  CHECK(loaded.tensor("codes").data() == codes);
  CHECK(decoded(loaded) == decoded(packed));
}

TEST_CASE("bytes that are not aligned for their type are copied") {
  const StoredTensors stored(
      compress_matrix(reference::gaussian(33, 20, 61).view(), with_rank(0)).matrix);
  auto shifted = std::make_shared<std::vector<std::vector<std::byte>>>(stored.data);
  std::vector<TensorView> views;
  for (std::size_t i = 0; i < stored.names.size(); ++i) {
    auto& data = (*shifted)[i];
    const auto bytes = static_cast<Index>(data.size());
    data.insert(data.begin(), std::byte{0});
    views.push_back({stored.names[i], data.data() + 1, bytes, shifted});
  }
  const PackedMatrix loaded = PackedMatrix::from_tensors(views);
  CHECK(decoded(loaded) == decoded(stored.load()));
  CHECK(loaded.codes().data() == reinterpret_cast<const std::uint8_t*>(views[2].data));
  CHECK(loaded.tensor("row_scale").data() != views[3].data);
}

TEST_CASE("stored bytes are codes, scales, factors and header, nothing else") {
  const Index m = 64, n = 48, half = 33;
  const PackedMatrix packed =
      compress_matrix(reference::gaussian(m, n, 62).view(), with_rank(2)).matrix;
  const Index codes = half * ((n * 7 + 7) / 8), factors = 2 * (half + n);
  CHECK(packed.bytes() == 80 + 4 + codes + 2 * half + factors + 2 * 2 * 2);
}

TEST_CASE("the error of a Gaussian weight is the codec's distortion") {
  const reference::Dense weight = reference::gaussian(256, 256, 63);
  CompressionOptions options;
  for (int bits = 2; bits <= 10; ++bits) {
    options.joint.code_bits = bits;
    const double expected = constellation(Codec::ring, bits).design_distortion;
    const double error =
        relative_squared_error(weight, compress_matrix(weight.view(), options).matrix);
    // Below the design: nearest points and the projection of two self-conjugate rows.
    CHECK(error < 1.01 * expected);
    CHECK(error > 0.95 * expected);
  }
}

TEST_CASE("signs keep smooth and constant weights from clipping") {
  reference::Dense smooth{96, 96, {}};
  for (Index i = 0; i < 96; ++i) {
    for (Index j = 0; j < 96; ++j) smooth.values.push_back(std::sin(0.05f * float(i + 2 * j)));
  }
  CompressionOptions options;
  options.joint.code_bits = 4;
  const double with_signs =
      relative_squared_error(smooth, compress_matrix(smooth.view(), options).matrix);
  options.signs = false;
  const double without =
      relative_squared_error(smooth, compress_matrix(smooth.view(), options).matrix);
  CHECK(with_signs < 0.15);
  CHECK(with_signs < 0.5 * without);
}

TEST_CASE("huge, tiny, denormal and zero weights survive") {
  for (const float scale : {1e30f, 1e-30f, 1e-39f}) {
    CAPTURE(scale);
    const reference::Dense weight = reference::gaussian(40, 30, 64, scale);
    CHECK(relative_squared_error(weight, compress_matrix(weight.view(), with_rank(2)).matrix) <
          0.03);
  }
  const reference::Dense zero{7, 5, std::vector<float>(35, 0.0f)};
  for (const float value : decoded(compress_matrix(zero.view(), with_rank(1)).matrix)) {
    CHECK(value == 0.0f);
  }
}

TEST_CASE("a single outlier does not spoil the rest") {
  reference::Dense weight = reference::gaussian(64, 64, 65);
  weight.values[100] = 50.0f;
  CHECK(relative_squared_error(weight, compress_matrix(weight.view(), with_rank(0)).matrix) < 0.02);
}

TEST_CASE("NaN and infinity are refused with their place") {
  reference::Dense weight = reference::gaussian(4, 3);
  weight.values[7] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH_AS(compress_matrix(weight.view(), with_rank(0)), "weight[2, 1] is nan", Error);
  weight.values[7] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(compress_matrix(weight.view(), with_rank(0)), Error);
}

TEST_CASE("a rank above the possible is refused with the range") {
  CHECK_THROWS_WITH_AS(compress_matrix(reference::gaussian(6, 9).view(), with_rank(5)),
                       "rank is 5, expected 0 to 4 for a weight of shape (6, 9)", Error);
}

TEST_CASE("all bytes are the same for any number of threads") {
  // Large enough that the work is really shared out (worthwhile_threads).
  const reference::Dense weight = reference::gaussian(1500, 900, 66);
  set_num_threads(1);
  const StoredTensors one(compress_matrix(weight.view(), with_rank(5)).matrix);
  set_num_threads(4);
  const StoredTensors four(compress_matrix(weight.view(), with_rank(5)).matrix);
  set_num_threads(0);
  CHECK(one.data == four.data);
}

TEST_CASE("every corruption of stored tensors is refused") {
  const PackedMatrix packed =
      compress_matrix(reference::gaussian(20, 13, 67).view(), with_rank(2)).matrix;
  const StoredTensors sound(packed);
  REQUIRE_NOTHROW(sound.load());
  StoredTensors bad = sound;

  SUBCASE("a later format version") { bad.set_header(0, kFormatVersion + 1); }
  SUBCASE("other sizes") { bad.set_header(1, 24); }
  SUBCASE("zero sizes") { bad.set_header(2, 0); }
  SUBCASE("sizes that overflow") { bad.set_header(1, std::numeric_limits<std::int64_t>::max()); }
  SUBCASE("negative sizes") { bad.set_header(1, -20); }
  SUBCASE("an unknown codec") { bad.set_header(4, 9); }
  SUBCASE("impossible bits") { bad.set_header(3, 17); }
  SUBCASE("an impossible rank") { bad.set_header(5, 1000); }
  SUBCASE("impossible factor bits") { bad.set_header(6, 13); }
  SUBCASE("unknown flags") { bad.set_header(7, 64); }
  SUBCASE("a used reserved field") { bad.set_header(9, 1); }
  SUBCASE("a short header") { bad["header"].pop_back(); }
  SUBCASE("short codes") { bad["codes"].pop_back(); }
  SUBCASE("long codes") { bad["codes"].push_back(std::byte{0}); }
  SUBCASE("non-zero padding") { bad["codes"].back() |= std::byte{0x80}; }
  SUBCASE("an infinite row scale") { bad["row_scale"][1] = std::byte{0x7c}; }
  SUBCASE("a negative row scale") { bad["row_scale"][1] |= std::byte{0x80}; }
  SUBCASE("a NaN matrix scale") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(bad["matrix_scale"].data(), &nan, 4);
  }
  SUBCASE("a missing tensor") {
    bad.names.pop_back();
    bad.data.pop_back();
  }
  SUBCASE("an extra tensor") {
    bad.names.push_back("channel_scale_in");
    bad.data.emplace_back(26);
  }
  CHECK(code_of_loading(bad) == ErrorCode::inconsistent_format);
}

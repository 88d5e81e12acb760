// Packed product against the decoded dense weight.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "llava_fa/error.hpp"
#include "llava_fa/matmul.hpp"
#include "llava_fa/runtime.hpp"
#include "llava_fa/trellis.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

CompressionOptions options_for(Index rank, bool signs) {
  CompressionOptions options;
  options.joint.code_bits = 5;
  options.joint.rank = rank;
  options.signs = signs;
  return options;
}

}  // namespace

// Relative distance of the packed product from the float64 product with the decoded weight.
double relative_error(const PackedMatrix& packed, const reference::Dense& x, Precision precision) {
  std::vector<float> output(x.rows * packed.spec().rows);
  matmul(packed, x.view(), output.data(), precision);
  return reference::product_error(packed, x, output);
}

PackedMatrix compressed(Index m, Index n, Codec codec, int code_bits, int state_bits = 9) {
  CompressionOptions options;
  options.joint.codec = codec;
  options.joint.code_bits = code_bits;
  if (codec == Codec::trellis) options.joint.state_bits = state_bits;
  return compress_matrix(reference::gaussian(m, n, 61).view(), options).matrix;
}

// What rounding to 16 bits may cost: codes whose products are tabulated whole are more exact than
// those whose points are put together.
double half_tolerance(Codec codec, int code_bits) {
  const bool in_words = codec == Codec::ring && (code_bits == 6 || code_bits == 8);
  return codec == Codec::trellis || in_words ? 1e-3 : 3e-4;
}

// What rounding activations and multipliers to bfloat16 may cost.
constexpr double kBFloat16Tolerance = 5e-3;

TEST_CASE("the packed product equals the dense one to 1e-5") {
  struct Case {
    Index m, n, batch, rank;
  };
  for (const auto [m, n, batch, rank] :
       {Case{1, 1, 1, 0}, Case{1, 9, 3, 1}, Case{9, 1, 2, 1}, Case{64, 48, 1, 0},
        Case{37, 53, 5, 4}, Case{600, 32, 20, 3}, Case{32, 151, 4, 0}, Case{70, 151, 9, 2},
        Case{70, 64, 17, 1}}) {
    for (const bool signs : {true, false}) {
      CAPTURE(m);
      CAPTURE(n);
      const reference::Dense weight = reference::gaussian(m, n, 51);
      const PackedMatrix packed = compress_matrix(weight.view(), options_for(rank, signs)).matrix;
      const reference::Dense x = reference::gaussian(batch, n, 52);
      CHECK(relative_error(packed, x, Precision::single) <= 1e-5);
    }
  }
}

TEST_CASE("every code is multiplied at both precisions, for sizes around the tiles") {
  struct Shape {
    Index m, n;
  };
  for (const auto [m, n] : {Shape{7, 3}, Shape{61, 1}, Shape{61, 2}, Shape{61, 3}, Shape{61, 34},
                            Shape{61, 64}, Shape{62, 129}, Shape{130, 515}}) {
    for (const Codec codec : {Codec::uniform, Codec::product, Codec::ring, Codec::trellis}) {
      const int most_bits = codec == Codec::trellis ? kMaxTrellisCodeBits : kMaxCodeBits;
      for (int code_bits = kMinCodeBits; code_bits <= most_bits; ++code_bits) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(codec_name(codec));
        CAPTURE(code_bits);
        const PackedMatrix packed = compressed(m, n, codec, code_bits);
        const reference::Dense x = reference::gaussian(2, n, 62);
        CHECK(relative_error(packed, x, Precision::single) <= 1e-5);
        CHECK(relative_error(packed, x, Precision::half) <= half_tolerance(codec, code_bits));
      }
    }
  }
}

TEST_CASE("blocks of every code are multiplied with many activations, wherever they end") {
  struct Shape {
    Index m, n, batch;
  };
  // Rows around panels of 64 rows of the half spectrum, columns around blocks of 64 slots, and
  // activations around tiles of six, or more than are multiplied at once.
  for (const auto [m, n, batch] :
       {Shape{7, 1, 17}, Shape{7, 2, 18}, Shape{61, 3, 19}, Shape{127, 127, 23},
        Shape{128, 128, 24}, Shape{158, 130, 11}, Shape{253, 259, 12}, Shape{40, 33, 199}}) {
    for (const Codec codec : {Codec::uniform, Codec::product, Codec::ring, Codec::trellis}) {
      const int most_bits = codec == Codec::trellis ? kMaxTrellisCodeBits : kMaxCodeBits;
      for (int code_bits = kMinCodeBits; code_bits <= most_bits; ++code_bits) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(batch);
        CAPTURE(codec_name(codec));
        CAPTURE(code_bits);
        const PackedMatrix packed = compressed(m, n, codec, code_bits);
        const reference::Dense x = reference::gaussian(batch, n, 68);
        CHECK(relative_error(packed, x, Precision::half) <= 1e-5);
        CHECK(relative_error(packed, x, Precision::bfloat16) <= kBFloat16Tolerance);
      }
    }
  }
}

TEST_CASE("trellis products go around in every segment, wherever its panels end") {
  // 512 rows of the half spectrum, two segments; 514, whose last panel is shorter than a state;
  // 551.
  for (const Index m : {1022, 1026, 1100}) {
    for (const int code_bits : {1, 4, 6, 8}) {
      CAPTURE(m);
      CAPTURE(code_bits);
      const PackedMatrix packed = compressed(m, 40, Codec::trellis, code_bits);
      const reference::Dense x = reference::gaussian(1, 40, 66);
      CHECK(relative_error(packed, x, Precision::single) <= 1e-5);
      CHECK(relative_error(packed, x, Precision::half) <=
            half_tolerance(Codec::trellis, code_bits));
      CHECK(relative_error(packed, reference::gaussian(7, 40, 69), Precision::single) <= 1e-5);
    }
  }
}

TEST_CASE("trellis states are multiplied, however many codes they hold") {
  for (int code_bits = 1; code_bits <= kMaxTrellisCodeBits; ++code_bits) {
    for (const int state_bits : {8, 12, 14}) {
      CAPTURE(code_bits);
      CAPTURE(state_bits);
      const PackedMatrix packed = compressed(126, 9, Codec::trellis, code_bits, state_bits);
      REQUIRE(effective_state_bits(64, code_bits, state_bits) == state_bits);
      const reference::Dense x = reference::gaussian(1, 9, 67);
      CHECK(relative_error(packed, x, Precision::single) <= 1e-5);
      CHECK(relative_error(packed, reference::gaussian(7, 9, 70), Precision::single) <= 1e-5);
      CHECK(relative_error(packed, x, Precision::half) <=
            half_tolerance(Codec::trellis, code_bits));
    }
  }
}

TEST_CASE("products do not depend on the size of the activations or on the number of threads") {
  struct Code {
    Codec codec;
    int bits;
  };
  for (const auto [codec, bits] : {Code{Codec::ring, 3}, Code{Codec::ring, 4}, Code{Codec::ring, 6},
                                   Code{Codec::ring, 8}, Code{Codec::trellis, 4}}) {
    const PackedMatrix packed = compressed(700, 1500, codec, bits);
    const reference::Dense x = reference::gaussian(1, 1500, 63);
    for (const float factor : {1e-30f, 1e-12f, 1.0f, 1e12f, 1e30f}) {
      reference::Dense scaled = x;
      for (float& value : scaled.values) value *= factor;
      CAPTURE(factor);
      CHECK(relative_error(packed, scaled, Precision::half) <= half_tolerance(codec, bits));
      CHECK(relative_error(packed, scaled, Precision::bfloat16) <= half_tolerance(codec, bits));
    }
    std::vector<float> one(700), three(700);
    for (const Precision precision : {Precision::single, Precision::half}) {
      set_num_threads(1);
      matmul(packed, x.view(), one.data(), precision);
      set_num_threads(3);
      matmul(packed, x.view(), three.data(), precision);
      set_num_threads(0);
      CHECK(one == three);
    }
  }
}

// One code for each way in which blocks are decoded, and one whose rows are.
struct BlockCode {
  Codec codec;
  int bits;
};
constexpr BlockCode kBlockCodes[] = {{Codec::ring, 4},    {Codec::ring, 6},    {Codec::ring, 8},
                                     {Codec::trellis, 4}, {Codec::trellis, 8}, {Codec::ring, 7}};

TEST_CASE("many activations are multiplied alike by any number of threads") {
  for (const auto [codec, bits] : kBlockCodes) {
    const PackedMatrix packed = compressed(300, 140, codec, bits);
    for (const Index batch : {Index{40}, 2 * kActivationsAtOnce + 1}) {
      const reference::Dense x = reference::gaussian(batch, 140, 68);
      std::vector<float> one(300 * batch), several(300 * batch);
      for (const Precision precision : {Precision::single, Precision::bfloat16}) {
        set_num_threads(1);
        matmul(packed, x.view(), one.data(), precision);
        for (const int threads : {2, 3, 16}) {
          set_num_threads(threads);
          matmul(packed, x.view(), several.data(), precision);
          CHECK(one == several);
        }
      }
      set_num_threads(0);
    }
  }
}

TEST_CASE("many activations may be of any size that float32 holds") {
  for (const auto [codec, bits] : kBlockCodes) {
    const PackedMatrix packed = compressed(60, 900, codec, bits);
    for (const float factor : {1e-30f, 1e-12f, 1e12f, 1e30f, 1e35f}) {
      reference::Dense x = reference::gaussian(12, 900, 71);
      for (float& value : x.values) value *= factor;
      CAPTURE(codec_name(codec));
      CAPTURE(bits);
      CAPTURE(factor);
      CHECK(relative_error(packed, x, Precision::single) <= 1e-5);
      CHECK(relative_error(packed, x, Precision::bfloat16) <= kBFloat16Tolerance);
    }
  }
}

// Two activations share a transform (docs/method.md, "Run time").
TEST_CASE("an activation that is not finite spoils no more than one other") {
  constexpr Index kBatch = 23, kBad = 7;
  for (const auto [codec, bits] : kBlockCodes) {
    const PackedMatrix packed = compressed(40, 70, codec, bits);
    for (const Precision precision : {Precision::single, Precision::bfloat16}) {
      reference::Dense x = reference::gaussian(kBatch, 70, 72);
      std::vector<float> good(40 * kBatch), bad(40 * kBatch);
      matmul(packed, x.view(), good.data(), precision);
      for (const float value :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        x.values[kBad * 70 + 3] = value;
        matmul(packed, x.view(), bad.data(), precision);
        Index same = 0;
        for (Index b = 0; b < kBatch; ++b) {
          const auto row = bad.begin() + b * 40;
          if (std::equal(row, row + 40, good.begin() + b * 40)) ++same;
          if (b == kBad)
            CHECK(std::none_of(row, row + 40, [](float y) { return std::isfinite(y); }));
        }
        CHECK(same >= kBatch - 2);
      }
    }
  }
}

TEST_CASE("activations whose spectrum is a single entry reach the ends of tables, not beyond") {
  for (int code_bits = kMinCodeBits; code_bits <= 8; ++code_bits) {
    CompressionOptions options;
    options.joint.code_bits = code_bits;
    options.signs = false;
    // Rows with a mean: the entries that this input meets are their rows' largest.
    reference::Dense weight = reference::gaussian(300, 12, 64);
    const reference::Dense means = reference::gaussian(300, 1, 65, /*scale=*/4.0f);
    for (Index i = 0; i < 300; ++i) {
      for (Index j = 0; j < 12; ++j) weight.values[i * 12 + j] += means.at(i, 0);
    }
    const PackedMatrix packed = compress_matrix(weight.view(), options).matrix;
    for (int i = 1; i <= 100; ++i) {
      reference::Dense x{1, 12, std::vector<float>(12, 0.37f * static_cast<float>(i))};
      CAPTURE(code_bits);
      CAPTURE(i);
      CHECK(relative_error(packed, x, Precision::single) <= 1e-5);
      CHECK(relative_error(packed, x, Precision::half) <= half_tolerance(Codec::ring, code_bits));
    }
  }
}

// The same matrix with every byte of its codes replaced.
PackedMatrix with_codes(const PackedMatrix& packed, std::uint8_t byte) {
  const std::vector<std::byte> codes(packed.tensor("codes").size(), std::byte(byte));
  const std::vector<TensorLayout> layout = tensor_layout(packed.spec());
  std::vector<TensorView> views;
  for (const TensorLayout& tensor : layout) {
    const std::span<const std::byte> stored = packed.tensor(tensor.name);
    const bool replaced = tensor.name == "codes";
    views.push_back({tensor.name, replaced ? codes.data() : stored.data(),
                     static_cast<Index>(stored.size()), nullptr});
  }
  return PackedMatrix::from_tensors(views);
}

// Their rounding errors are all the same and add up too, to half a unit for each of 16 columns
// where the largest point gives 32,700; a sum that wraps around would be far off.
TEST_CASE("points that all add up fill the range of sums, and do not leave it") {
  for (const auto& [codec, bits] :
       {std::pair{Codec::ring, 6}, std::pair{Codec::ring, 8}, std::pair{Codec::trellis, 2},
        std::pair{Codec::trellis, 4}, std::pair{Codec::trellis, 8}}) {
    const PackedMatrix packed = compressed(126, 32, codec, bits);
    reference::Dense impulse{1, 32, std::vector<float>(32, 0.0f)};  // a flat spectrum
    impulse.values[0] = 1;
    std::vector<double> norms, errors;
    for (int byte = 0; byte < 256; ++byte) {
      const PackedMatrix constant = with_codes(packed, static_cast<std::uint8_t>(byte));
      std::vector<float> single(126), half(126);
      matmul(constant, impulse.view(), single.data(), Precision::single);
      matmul(constant, impulse.view(), half.data(), Precision::half);
      norms.push_back(reference::norm(single));
      errors.push_back(reference::distance(single, half));
    }
    const double rounding = 0.5 * 16 / 32700 * *std::ranges::max_element(norms);
    for (int byte = 0; byte < 256; ++byte) {
      CAPTURE(codec_name(codec));
      CAPTURE(bits);
      CAPTURE(byte);
      CHECK(errors[byte] <= std::max(5e-3 * norms[byte], rounding));
    }
  }
}

TEST_CASE("zero activations give zero, and what is not finite shows in the output") {
  struct Code {
    Codec codec;
    int bits;
  };
  for (const auto [codec, bits] : {Code{Codec::ring, 4}, Code{Codec::ring, 6}, Code{Codec::ring, 8},
                                   Code{Codec::trellis, 4}}) {
    const PackedMatrix packed = compressed(40, 70, codec, bits);
    std::vector<float> x(70, 0.0f), y(40, 1.0f);
    matmul(packed, {x.data(), 1, 70, 70}, y.data(), Precision::half);
    for (const float value : y) CHECK(value == 0.0f);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      x[3] = bad;
      matmul(packed, {x.data(), 1, 70, 70}, y.data(), Precision::half);
      for (const float value : y) CHECK_FALSE(std::isfinite(value));
    }
  }
}

TEST_CASE("an empty batch is an empty result") {
  const PackedMatrix packed =
      compress_matrix(reference::gaussian(8, 8).view(), options_for(0, true)).matrix;
  matmul(packed, {nullptr, 0, 8, 8}, nullptr);
}

TEST_CASE("activations of another width are refused") {
  const PackedMatrix packed =
      compress_matrix(reference::gaussian(8, 6).view(), options_for(0, true)).matrix;
  const reference::Dense x = reference::gaussian(2, 5);
  std::vector<float> out(16);
  CHECK_THROWS_WITH_AS(matmul(packed, x.view(), out.data()),
                       "activations have width 5, expected 6 input channels", Error);
}

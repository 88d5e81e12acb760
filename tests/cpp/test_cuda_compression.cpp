// The compression of cpp/src/cuda, kernel after kernel on the host, against the CPU's.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cuda_compression.hpp"
#include "llava_fa/cuda.hpp"
#include "llava_fa/error.hpp"

using namespace llava_fa;
using namespace llava_fa::host;

namespace {

// Entries whose points differ.
double share_of_other_codes(const PackedMatrix& a, const PackedMatrix& b) {
  const Index rows = half_rows(a.spec().rows), cols = a.spec().cols;
  const auto codes = [&](const PackedMatrix& matrix, Index row) {
    PolarCodes codes{rows, cols, matrix.spec().code_bits, {}, {}};
    codes.packed.assign(matrix.codes().begin(), matrix.codes().end());
    return codes_of_row(codes, row);
  };
  Index others = 0;
  for (Index k = 0; k < rows; ++k) {
    const std::vector<std::uint16_t> of_a = codes(a, k), of_b = codes(b, k);
    for (Index l = 0; l < cols; ++l) others += of_a[l] != of_b[l];
  }
  return static_cast<double>(others) / static_cast<double>(rows * cols);
}

struct Shape {
  Index m, n;
};

}  // namespace

TEST_CASE("CUDA: matrices are compressed as on the CPU, with every code") {
  for (const auto [m, n] : {Shape{7, 3}, Shape{61, 64}, Shape{131, 77}}) {
    const reference::Dense w = reference::gaussian(m, n, 91);
    for (const Codec codec : {Codec::uniform, Codec::product, Codec::ring, Codec::trellis}) {
      const int most_bits = codec == Codec::trellis ? kMaxTrellisCodeBits : kMaxCodeBits;
      for (int code_bits = kMinCodeBits; code_bits <= most_bits; ++code_bits) {
        CAPTURE(m);
        CAPTURE(codec_name(codec));
        CAPTURE(code_bits);
        const CompressionOptions options = options_for(codec, code_bits);
        const CompressionResult expected = compress_matrix(w.view(), options);
        const CompressionResult found = compressed(w, options);
        CHECK(found.matrix.spec() == expected.matrix.spec());
        CHECK(found.matrix.matrix_scale() == doctest::Approx(expected.matrix.matrix_scale()));
        // Entries halfway between two points may go either way, and a trellis' path with them for
        // some rows.
        const double others = share_of_other_codes(found.matrix, expected.matrix);
        CHECK(others <= (codec == Codec::trellis ? 0.05 : 1e-3));
        CHECK(found.objective[0] == doctest::Approx(expected.objective[0]).epsilon(1e-3));
        CHECK(relative_error(found.matrix, w) ==
              doctest::Approx(relative_error(expected.matrix, w)).epsilon(1e-3));
      }
    }
  }
}

TEST_CASE("CUDA: the search of the trellis finds the CPU's paths, whatever its states and rows") {
  // One segment, two, two of which the last is longer; fewer rows than around a seam.
  for (const Index m : {1022, 1100, 90, 9, 1}) {
    const reference::Dense w = reference::gaussian(m, 5, 92);
    for (const auto& [code_bits, state_bits] :
         {std::pair{1, 12}, {2, 16}, {3, 8}, {4, 12}, {6, 10}, {8, 12}, {8, 8}}) {
      CAPTURE(m);
      CAPTURE(code_bits);
      CAPTURE(state_bits);
      const CompressionOptions options = options_for(Codec::trellis, code_bits, state_bits);
      const CompressionResult expected = compress_matrix(w.view(), options);
      const CompressionResult found = compressed(w, options);
      CHECK(share_of_other_codes(found.matrix, expected.matrix) <= 0.01);
      CHECK(found.objective[0] == doctest::Approx(expected.objective[0]).epsilon(1e-3));
    }
  }
}

TEST_CASE("CUDA: compression of sizes around panels, tiles, primes and long transforms") {
  for (const auto [m, n] : {Shape{1, 1}, Shape{1, 40}, Shape{40, 1}, Shape{2, 2}, Shape{126, 31},
                            Shape{128, 33}, Shape{131, 67}, Shape{254, 134}, Shape{20, 1021}}) {
    const reference::Dense w = reference::gaussian(m, n, 93);
    for (const Codec codec : {Codec::ring, Codec::trellis}) {
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(codec_name(codec));
      const CompressionOptions options = options_for(codec, 5);
      const CompressionResult expected = compress_matrix(w.view(), options);
      const CompressionResult found = compressed(w, options);
      CHECK(relative_error(found.matrix, w) ==
            doctest::Approx(relative_error(expected.matrix, w)).epsilon(1e-3));
    }
  }
}

TEST_CASE("CUDA: no compressed bit depends on the order of threads or on where buffers are") {
  const reference::Dense w = reference::gaussian(300, 70, 94);
  for (const auto& [codec, code_bits] :
       {std::pair{Codec::ring, 5}, {Codec::trellis, 2}, {Codec::trellis, 8}}) {
    const CompressionOptions options = options_for(codec, code_bits);
    const PackedMatrix expected = compressed(w, options).matrix;
    for (const Order order : {Order::descending, Order::scattered}) {
      CHECK(same_tensors(compressed(w, options, {}, order).matrix, expected));
    }
    for (const Index limit : {Index{0}, kMostShared}) {
      CHECK(same_tensors(compressed(w, options, {}, Order::ascending, limit).matrix, expected));
    }
  }
}

TEST_CASE("CUDA: options and moments have the effect that they have on the CPU") {
  reference::Dense w = reference::gaussian(90, 120, 95);
  std::vector<float> inputs(120), outputs(90);
  for (Index i = 0; i < 90 * 120; ++i) w.values[i] *= std::exp(0.02f * float(i % 120));
  for (Index j = 0; j < 120; ++j) inputs[j] = std::exp(-0.03f * float(j));
  for (Index i = 0; i < 90; ++i) outputs[i] = 0.01f + float(i * i);
  const Moments correlated(120);
  SecondMoments moments;
  moments.input_diagonal = inputs;
  moments.output_diagonal = outputs;
  for (const Odc odc : {Odc::none, Odc::spatial, Odc::spectral}) {
    for (const bool flag : {false, true}) {
      CAPTURE(odc_name(odc));
      CompressionOptions options = options_for(Codec::ring, 6);
      options.odc = odc;
      options.signs = flag;
      options.joint.unbiased = !flag;
      options.feedback = false;
      moments.input_full =
          odc == Odc::spectral ? std::span<const float>(correlated.full) : std::span<const float>();
      const CompressionResult expected = compress_matrix(w.view(), options, moments);
      const CompressionResult found = compressed(w, options, moments);
      CHECK(found.matrix.spec() == expected.matrix.spec());
      CHECK(found.matrix.spec().channel_scale_in == (odc == Odc::spatial));
      CHECK(share_of_other_codes(found.matrix, expected.matrix) <= 1e-3);
      CHECK(found.objective[0] == doctest::Approx(expected.objective[0]).epsilon(1e-3));
      for (Index k = 0; k < half_rows(90); ++k) {
        CHECK(half_to_float(found.matrix.row_scale()[k]) ==
              doctest::Approx(half_to_float(expected.matrix.row_scale()[k])).epsilon(2e-3));
      }
    }
  }
}

TEST_CASE("CUDA: error feedback gives the CPU's codes, with every codec") {
  // Columns in one block of the filter, in whole ones, and in a short last one.
  for (const auto [m, n] : {Shape{9, 1}, Shape{40, 21}, Shape{61, 128}, Shape{131, 150}}) {
    const reference::Dense w = reference::gaussian(m, n, 101);
    const Moments moments(n);
    for (const auto& [codec, code_bits] : {std::pair{Codec::uniform, 6},
                                           {Codec::product, 5},
                                           {Codec::ring, 2},
                                           {Codec::ring, 8},
                                           {Codec::trellis, 2},
                                           {Codec::trellis, 5},
                                           {Codec::trellis, 8}}) {
      for (const bool unbiased : {false, true}) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(codec_name(codec));
        CAPTURE(code_bits);
        CompressionOptions options = options_for(codec, code_bits);
        options.joint.unbiased = unbiased;
        const CompressionResult expected = compress_matrix(w.view(), options, moments.view());
        const CompressionResult found = compressed(w, options, moments.view());
        CHECK(found.matrix.spec() == expected.matrix.spec());
        // A point that goes the other way is fed back, and so changes later ones of its row.
        CHECK(found.objective[0] == doctest::Approx(expected.objective[0]).epsilon(0.02));
        CHECK(relative_error(found.matrix, w) ==
              doctest::Approx(relative_error(expected.matrix, w)).epsilon(0.02));
        if (codec != Codec::trellis && n < 100) {
          CHECK(share_of_other_codes(found.matrix, expected.matrix) <= 0.01);
        }
      }
    }
  }
}

TEST_CASE("CUDA: feedback through several segments of the trellis, and of zero rows") {
  reference::Dense w = reference::gaussian(1100, 70, 102);
  const Moments moments(70);
  const CompressionOptions options = options_for(Codec::trellis, 4, 8);
  const CompressionResult expected = compress_matrix(w.view(), options, moments.view());
  const CompressionResult found = compressed(w, options, moments.view());
  CHECK(found.objective[0] == doctest::Approx(expected.objective[0]).epsilon(0.005));
  // Half of what there is without feedback, or less.
  SecondMoments diagonal = moments.view();
  diagonal.input_full = {};
  CHECK(found.objective[0] <= 0.5 * compressed(w, options, diagonal).objective[0]);
  std::fill(w.values.begin(), w.values.end(), 0.0f);
  for (const Codec codec : {Codec::ring, Codec::trellis}) {
    const CompressionResult zero = compressed(w, options_for(codec, 4, 8), moments.view());
    CHECK(zero.objective[0] == 0.0);
    CHECK(std::ranges::all_of(zero.matrix.row_scale(), [](auto scale) { return scale == 0; }));
  }
}

TEST_CASE("CUDA: no bit found under feedback depends on the order of threads or on buffers") {
  const reference::Dense w = reference::gaussian(90, 100, 103);
  const Moments moments(100);
  for (const Codec codec : {Codec::ring, Codec::trellis}) {
    const CompressionOptions options = options_for(codec, 4);
    const PackedMatrix expected = compressed(w, options, moments.view()).matrix;
    for (const Order order : {Order::descending, Order::scattered}) {
      CHECK(same_tensors(compressed(w, options, moments.view(), order).matrix, expected));
    }
    for (const Index limit : {Index{0}, kMostShared}) {
      CHECK(same_tensors(compressed(w, options, moments.view(), Order::ascending, limit).matrix,
                         expected));
    }
  }
}

TEST_CASE("CUDA: weights of 16 bits, rows apart from each other") {
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16}) {
    reference::Dense w = reference::gaussian(50, 30, 97);
    const RowsApart apart(w, type);
    const CompressionOptions options = options_for(Codec::trellis, 4);
    CHECK(same_tensors(compressed(apart.weight(), 50, 30, options).matrix,
                       compressed(w, options).matrix));
  }
}

TEST_CASE("CUDA: compression of zeros, of zero rows, and of any magnitude") {
  for (const Codec codec : {Codec::uniform, Codec::ring, Codec::trellis}) {
    const CompressionOptions options = options_for(codec, 6);
    CAPTURE(codec_name(codec));
    reference::Dense w{30, 20, std::vector<float>(600, 0.0f)};
    std::vector<float> decoded(600);
    const CompressionResult zero = compressed(w, options);
    zero.matrix.decode(decoded.data());
    CHECK(reference::norm(decoded) == 0.0);
    CHECK(zero.objective[0] == 0.0);
    w.values[7] = 1.0f;  // all others zero
    CHECK(relative_error(compressed(w, options).matrix, w) <= 0.3);
    const reference::Dense constant{30, 20, std::vector<float>(600, -2.0f)};
    CHECK(relative_error(compressed(constant, options).matrix, constant) <= 0.3);
    for (const float size : {1e-42f, 1e-30f, 1e30f, 3e37f}) {
      CAPTURE(size);
      const reference::Dense other = reference::gaussian(30, 20, 98, size);
      const double expected = relative_error(compress_matrix(other.view(), options).matrix, other);
      CHECK(relative_error(compressed(other, options).matrix, other) ==
            doctest::Approx(expected).epsilon(1e-3));
    }
  }
}

TEST_CASE("CUDA: what is not finite is named as on the CPU") {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    for (const Index place : {Index{0}, Index{37}, Index{599}}) {
      reference::Dense w = reference::gaussian(30, 20, 99);
      w.values[place] = bad;
      const CompressionOptions options = options_for(Codec::ring, 6);
      std::string expected;
      try {
        compress_matrix(w.view(), options);
      } catch (const Error& error) {
        expected = error.what();
      }
      CHECK(expected.starts_with("weight["));
      CHECK_THROWS_WITH_AS(compressed(w, options), expected.c_str(), Error);
    }
  }
}

TEST_CASE("CUDA: compression options out of range are refused") {
  CompressionOptions options = options_for(Codec::ring, 6);
  options.joint.rank = 17;  // a half spectrum of 16 rows
  CHECK_THROWS_AS(cuda::Compressor(30, 20, options, 0), Error);
  CHECK_THROWS_AS(cuda::Compressor(30, 20, options_for(Codec::trellis, 9), 0), Error);
  CHECK_THROWS_AS(cuda::Compressor(0, 20, options_for(Codec::ring, 6), 0), Error);
  if (const auto reason = cuda::unavailable_reason()) {
    CHECK_THROWS_WITH_AS(cuda::Compressor(30, 20, options_for(Codec::ring, 6), 0),
                         ("no GPU can be used: " + *reason).c_str(), Error);
  }
}

TEST_CASE("CUDA: compression needs about as much memory as documented") {
  const auto bytes = [](Codec codec, int code_bits, int state_bits, bool fed_back) {
    const CompressionOptions options = options_for(codec, code_bits, state_bits);
    return cuda::CompressionPlan(4096, 4096, options, kMostShared).layout(fed_back).bytes;
  };
  constexpr Index kWeights = Index{4096} * 4096, kSearches = Index{256} << 20;
  CHECK(bytes(Codec::ring, 10, 0, false) <= 6 * kWeights);
  CHECK(bytes(Codec::ring, 10, 0, true) <= 17 * kWeights);
  for (const auto& [code_bits, state_bits] : {std::pair{1, 16}, {2, 12}, {4, 12}, {8, 16}}) {
    CHECK(bytes(Codec::trellis, code_bits, state_bits, false) <= 6 * kWeights + kSearches);
    const Index per_row = Index{1} << (state_bits - code_bits);
    CHECK(bytes(Codec::trellis, code_bits, state_bits, true) <=
          17 * kWeights + (4096 / 2 + 256) * per_row);
  }
}

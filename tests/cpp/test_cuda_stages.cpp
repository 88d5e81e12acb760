// Single stages of cpp/src/cuda, kernel after kernel on the host, against the CPU's.
#include <doctest/doctest.h>

#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "cuda_compression.hpp"
#include "llava_fa/cuda.hpp"
#include "llava_fa/error.hpp"
#include "llava_fa/spectrum.hpp"
#include "llava_fa/trellis.hpp"

using namespace llava_fa;
using namespace llava_fa::host;

namespace {

struct Shape {
  Index m, n;
};

// Around panels and tiles, primes, and lines that are one entry long.
constexpr Shape kShapes[] = {{1, 1},    {1, 40},   {40, 1},    {2, 2},     {7, 3},  {9, 8},
                             {126, 31}, {131, 67}, {254, 134}, {20, 1021}, {600, 6}};

// As cuda::Stages.
class HostStages {
 public:
  HostStages(Index m, Index n, const CompressionOptions& options = options_for(Codec::ring, 6),
             Index oversampling = kJointOversampling, Order order = Order::ascending,
             Index shared_limit = kLeastShared)
      : plan_(m, n, options, shared_limit, oversampling),
        workspace_(workspace_of(plan_.stage_layout().bytes)),
        queue_(order),
        stages_(plan_, plan_.stage_layout(), workspace_.data(), queue_) {}

  cuda::StagesPipeline<HostLauncher>* operator->() { return &stages_; }

  ComplexMatrix half_spectrum(const cuda::Weight& weight) {
    std::vector<cuda::Complex> out = unwritten(plan_.half_rows() * plan_.cols());
    stages_.half_spectrum(weight, out.data());
    return planes(out, plan_.half_rows(), plan_.cols());
  }
  ComplexMatrix half_spectrum(const reference::Dense& w) {
    return half_spectrum({w.values.data(), ElementType::float32, w.cols});
  }

  std::vector<float> inverse(const ComplexMatrix& spectrum) {
    const std::vector<cuda::Complex> given = pairs(spectrum);
    std::vector<float> out(plan_.rows() * plan_.cols(), std::numeric_limits<float>::quiet_NaN());
    stages_.inverse_half_spectrum(given.data(), out.data());
    return out;
  }

  TruncatedSvd svd(const ComplexMatrix& matrix, const SvdOptions& options,
                   const ComplexMatrix* warm_start = nullptr) {
    return stages_.truncated_svd(pairs(matrix).data(), options, warm_start);
  }

  PolarCodes encode(const ComplexMatrix& values) { return stages_.encode(pairs(values).data()); }

  ComplexMatrix decode(const PolarCodes& codes) {
    std::vector<cuda::Complex> out = unwritten(codes.rows * codes.cols);
    stages_.decode(codes.packed.data(), codes.row_scale, out.data());
    return planes(out, codes.rows, codes.cols);
  }

  std::vector<float> dense(const PackedMatrix& matrix) {
    std::vector<float> out(plan_.rows() * plan_.cols(), std::numeric_limits<float>::quiet_NaN());
    const cuda::CompressionPlan::Layout layout = plan_.decoding_layout();
    std::vector<std::max_align_t> workspace = workspace_of(layout.bytes);
    cuda::StagesPipeline<HostLauncher>(plan_, layout, workspace.data(), queue_)
        .dense(matrix, matrix.codes().data(), out.data());
    return out;
  }

 private:
  cuda::CompressionPlan plan_;
  std::vector<std::max_align_t> workspace_;
  HostLauncher queue_;
  cuda::StagesPipeline<HostLauncher> stages_;
};

ComplexMatrix copy_of(const ComplexMatrix& matrix) {
  return planes(pairs(matrix), matrix.rows(), matrix.cols());
}

// On the CPU.
PolarCodes encoded(const ComplexMatrix& given, const CompressionOptions& options) {
  const JointOptions& joint = options.joint;
  ComplexMatrix values = copy_of(given);
  if (joint.codec == Codec::trellis) {
    return trellis_encode(values, joint.code_bits, joint.state_bits, false);
  }
  return polar_encode(values, constellation(joint.codec, joint.code_bits), false);
}

ComplexMatrix decoded(const PolarCodes& codes, const CompressionOptions& options) {
  const JointOptions& joint = options.joint;
  if (joint.codec == Codec::trellis) return trellis_decode(codes, joint.state_bits);
  return polar_decode(codes, constellation(joint.codec, joint.code_bits));
}

void for_every_code(const std::function<void(const CompressionOptions&)>& check) {
  for (const Codec codec : {Codec::uniform, Codec::product, Codec::ring, Codec::trellis}) {
    const int most_bits = codec == Codec::trellis ? kMaxTrellisCodeBits : kMaxCodeBits;
    for (int code_bits = kMinCodeBits; code_bits <= most_bits; ++code_bits) {
      CAPTURE(codec_name(codec));
      CAPTURE(code_bits);
      check(options_for(codec, code_bits));
    }
  }
}

// Singular vectors are defined up to a factor, what they make up is not.
ComplexMatrix product_of(const TruncatedSvd& svd) {
  ComplexMatrix scaled = copy_of(svd.left_vectors);
  for (Index i = 0; i < scaled.count(); ++i) {
    scaled.real()[i] *= svd.singular_values[i % scaled.cols()];
    scaled.imag()[i] *= svd.singular_values[i % scaled.cols()];
  }
  ComplexMatrix out(scaled.rows(), svd.right_vectors.cols());
  for (Index i = 0; i < out.rows(); ++i) {
    for (Index j = 0; j < out.cols(); ++j) {
      reference::Complex sum;
      for (Index k = 0; k < scaled.cols(); ++k) {
        sum += reference::entry(scaled, i, k) * reference::entry(svd.right_vectors, k, j);
      }
      out.real()[i * out.cols() + j] = static_cast<float>(sum.real());
      out.imag()[i * out.cols() + j] = static_cast<float>(sum.imag());
    }
  }
  return out;
}

}  // namespace

TEST_CASE("CUDA: half spectra are the CPU's, and weights come back from them") {
  for (const auto [m, n] : kShapes) {
    CAPTURE(m);
    CAPTURE(n);
    const reference::Dense w = reference::gaussian(m, n, 121);
    const ComplexMatrix expected = half_spectrum(w.view());
    const ComplexMatrix found = HostStages(m, n).half_spectrum(w);
    CHECK(distance(found, expected) <= 1e-6 * norm(expected));
    CHECK(reference::distance(HostStages(m, n).inverse(found), w.values) <=
          2e-6 * reference::norm(w.values));
  }
}

TEST_CASE("CUDA: what no real matrix has is left out of inverse half spectra as on the CPU") {
  for (const auto [m, n] : kShapes) {
    CAPTURE(m);
    CAPTURE(n);
    const ComplexMatrix spectrum = reference::complex_gaussian(half_rows(m), n, 122);
    std::vector<float> expected(m * n);
    inverse_half_spectrum(copy_of(spectrum), m, expected.data());
    CHECK(reference::distance(HostStages(m, n).inverse(spectrum), expected) <=
          2e-6 * reference::norm(expected));
  }
}

TEST_CASE("CUDA: half spectra of 16-bit weights, rows apart from each other") {
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16}) {
    reference::Dense w = reference::gaussian(30, 20, 123);
    const RowsApart apart(w, type);
    const ComplexMatrix found = HostStages(30, 20).half_spectrum(apart.weight());
    CHECK(distance(found, HostStages(30, 20).half_spectrum(w)) == 0.0);
  }
}

TEST_CASE("CUDA: truncated SVDs are the CPU's, warm or not") {
  for (const auto [m, n] : {Shape{1, 1}, Shape{40, 1}, Shape{62, 90}, Shape{200, 33}}) {
    const Index most = std::min(half_rows(m), n);
    for (const Index rank : {Index{1}, std::min<Index>(5, most), most}) {
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(rank);
      CompressionOptions options = options_for(Codec::ring, 6);
      options.joint.rank = rank;
      // Of decreasing singular values, which the subspace finds.
      ComplexMatrix matrix = reference::complex_gaussian(half_rows(m), n, 124);
      for (Index i = 0; i < matrix.count(); ++i) {
        const float factor = std::pow(0.8f, static_cast<float>(i % n));
        matrix.real()[i] *= factor;
        matrix.imag()[i] *= factor;
      }
      const SvdOptions svd_options = {rank, 2, default_oversampling(rank), 7};
      HostStages stages(m, n, options, default_oversampling(rank));
      const TruncatedSvd expected = randomized_svd(matrix, svd_options);
      const TruncatedSvd found = stages.svd(matrix, svd_options);
      for (Index k = 0; k < rank; ++k) {
        CHECK(std::abs(found.singular_values[k] - expected.singular_values[k]) <=
              1e-5 * expected.singular_values[0]);
      }
      CHECK(distance(product_of(found), product_of(expected)) <= 1e-3 * norm(matrix));
      const TruncatedSvd warm = stages.svd(matrix, svd_options, &expected.right_vectors);
      CHECK(distance(product_of(warm), product_of(expected)) <= 1e-3 * norm(matrix));
    }
  }
}

TEST_CASE("CUDA: rows are encoded and decoded as on the CPU, with every code") {
  for (const auto [m, n] : {Shape{1, 1}, Shape{7, 3}, Shape{130, 61}, Shape{1100, 5}}) {
    const ComplexMatrix values = reference::complex_gaussian(half_rows(m), n, 125);
    for_every_code([&, m = m, n = n](const CompressionOptions& options) {
      CAPTURE(m);
      HostStages stages(m, n, options);
      const PolarCodes codes = encoded(values, options);
      const ComplexMatrix expected = decoded(codes, options);
      CHECK(distance(stages.decode(codes), expected) <= 1e-6 * norm(expected));
      // Entries halfway between two points may go either way.
      const ComplexMatrix found = decoded(stages.encode(values), options);
      CHECK(distance(found, values) == doctest::Approx(distance(expected, values)).epsilon(2e-3));
    });
  }
}

TEST_CASE("CUDA: decoding reads states of any length, up to 16 rows and around the circle") {
  for (const Index m : {1, 9, 90, 1022, 1100}) {
    for (const auto& [code_bits, state_bits] :
         {std::pair{1, 16}, {1, 3}, {4, 7}, {1, 8}, {3, 14}, {5, 11}, {8, 8}, {8, 12}, {8, 16}}) {
      CAPTURE(m);
      CAPTURE(code_bits);
      CAPTURE(state_bits);
      const CompressionOptions options = options_for(Codec::trellis, code_bits, state_bits);
      const Index h = half_rows(m);
      PolarCodes codes{h, 6, code_bits, {}, std::vector<std::uint16_t>(h, float_to_half(1.0f))};
      for (Index i = 0; i < h * packed_row_bytes(6, code_bits); ++i) {
        codes.packed.push_back(static_cast<std::uint8_t>(i * 7919 >> 3));
      }
      const ComplexMatrix expected = decoded(codes, options);
      CHECK(distance(HostStages(m, 6, options).decode(codes), expected) == 0.0);
    }
  }
}

TEST_CASE("CUDA: packed matrices decode to the CPU's dense weight") {
  const reference::Dense w = reference::gaussian(131, 77, 126);
  std::vector<float> inputs(77);
  for (Index j = 0; j < 77; ++j) inputs[j] = std::exp(-0.05f * float(j));
  for_every_code([&](CompressionOptions options) {
    for (const Index rank : {Index{0}, Index{3}}) {
      CAPTURE(rank);
      options.joint.rank = rank;
      options.odc = Odc::spatial;
      const PackedMatrix matrix = compress_matrix(w.view(), options, {inputs, {}, {}}).matrix;
      std::vector<float> expected(131 * 77);
      matrix.decode(expected.data());
      CHECK(reference::distance(HostStages(131, 77, options).dense(matrix), expected) <=
            2e-6 * reference::norm(expected));
    }
  });
}

TEST_CASE("CUDA: packed matrices of all sizes and of any magnitude decode to the CPU's weight") {
  for (const auto [m, n] : kShapes) {
    for (const float size : {0.0f, 1e-30f, 1.0f, 1e30f}) {
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(size);
      reference::Dense w = reference::gaussian(m, n, 127);
      for (float& value : w.values) value *= size;
      const CompressionOptions options = options_for(Codec::trellis, 4);
      const PackedMatrix matrix = compress_matrix(w.view(), options).matrix;
      std::vector<float> expected(m * n);
      matrix.decode(expected.data());
      CHECK(reference::distance(HostStages(m, n, options).dense(matrix), expected) <=
            2e-6 * reference::norm(expected));
    }
  }
}

TEST_CASE("CUDA: no bit of a stage depends on the order of threads or on where buffers are") {
  constexpr Index kRows = 300, kCols = 70;
  const reference::Dense w = reference::gaussian(kRows, kCols, 128);
  CompressionOptions options = options_for(Codec::trellis, 4);
  options.joint.rank = 3;
  const PackedMatrix matrix = compress_matrix(w.view(), options).matrix;
  const ComplexMatrix spectrum = half_spectrum(w.view());
  const SvdOptions svd_options = {3, 2, kJointOversampling, 1};
  const auto all = [&](Order order, Index shared_limit) {
    const auto stages = [&] {
      return HostStages(kRows, kCols, options, kJointOversampling, order, shared_limit);
    };
    std::vector<float> bits = stages().dense(matrix);
    const auto append = [&](const ComplexMatrix& m) {
      bits.insert(bits.end(), m.real(), m.real() + 2 * m.count());
    };
    const std::vector<float> inverse = stages().inverse(spectrum);
    bits.insert(bits.end(), inverse.begin(), inverse.end());
    append(stages().half_spectrum(w));
    append(product_of(stages().svd(spectrum, svd_options)));
    append(stages().decode(stages().encode(spectrum)));
    return bits;
  };
  const std::vector<float> expected = all(Order::ascending, kLeastShared);
  for (const Order order : {Order::descending, Order::scattered}) {
    CHECK(all(order, kLeastShared) == expected);
  }
  for (const Index limit : {Index{0}, kMostShared}) {
    CHECK(all(Order::ascending, limit) == expected);
  }
}

TEST_CASE("CUDA: single stages refuse scales and weights that are not finite") {
  ComplexMatrix values = reference::complex_gaussian(16, 20, 129);
  for (Index i = 0; i < 2 * values.count(); ++i) values.real()[i] *= 1e6f;
  CHECK_THROWS_WITH_AS(HostStages(30, 20).encode(values),
                       doctest::Contains("exceeds the float16 range"), Error);
  reference::Dense w = reference::gaussian(30, 20, 130);
  w.values[37] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH_AS(HostStages(30, 20)->energies({w.values.data(), ElementType::float32, 20}),
                       doctest::Contains("weight[1, 17] is inf"), Error);
}

TEST_CASE("CUDA: single stages of options out of range are refused") {
  CompressionOptions options = options_for(Codec::ring, 6);
  CHECK_THROWS_AS(cuda::Stages(0, 20, options, 10, 0), Error);
  CHECK_THROWS_WITH_AS(cuda::Stages(30, 20, options, -1, 0),
                       doctest::Contains("oversampling must not be negative"), Error);
  CHECK_THROWS_WITH_AS(cuda::Stages(30, 20, options_for(Codec::trellis, 4, 3), 10, 0),
                       doctest::Contains("state_bits is 3"), Error);
  options.joint.rank = 17;  // a half spectrum of 16 rows
  CHECK_THROWS_WITH_AS(cuda::Stages(30, 20, options, 10, 0), doctest::Contains("rank is 17"),
                       Error);
  if (const auto reason = cuda::unavailable_reason()) {
    CHECK_THROWS_WITH_AS(cuda::Stages(30, 20, options_for(Codec::ring, 6), 10, 0),
                         ("no GPU can be used: " + *reason).c_str(), Error);
  }
}

TEST_CASE("CUDA: single stages need about as much memory as documented") {
  constexpr Index kWeights = Index{4096} * 4096;
  const CompressionOptions ring = options_for(Codec::ring, 10);
  CHECK(cuda::CompressionPlan(4096, 4096, ring, kMostShared).stage_layout().bytes <= 6 * kWeights);
  CHECK(cuda::CompressionPlan(4096, 4096, ring, kMostShared).decoding_layout().bytes <=
        Index(4.1 * kWeights));
  const CompressionOptions trellis = options_for(Codec::trellis, 4, 16);
  CHECK(cuda::CompressionPlan(4096, 4096, trellis, kMostShared).stage_layout().bytes <=
        6 * kWeights + (Index{256} << 20));
}

// The product of cpp/src/cuda, kernel after kernel on the host, against the decoded weight.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/product_pipeline.hpp"
#include "host_block.hpp"
#include "llava_fa/error.hpp"
#include "reference.hpp"

using namespace llava_fa;
using host::Order;

namespace {

constexpr Index kLeastShared = 99 << 10;  // shared memory of the smallest device

PackedMatrix compressed(Index m, Index n, Codec codec, int code_bits, Index rank = 0,
                        int state_bits = 9) {
  CompressionOptions options;
  options.joint.codec = codec;
  options.joint.code_bits = code_bits;
  options.joint.rank = rank;
  if (codec == Codec::trellis) options.joint.state_bits = state_bits;
  return compress_matrix(reference::gaussian(m, n, 71).view(), options).matrix;
}

// Device memory of a product, exactly as large as asked for.
struct Memory {
  std::vector<std::max_align_t> workspace;
  cuda::DeviceMemory view;
};

Memory memory_for(const cuda::ProductPlan& plan, const PackedMatrix& packed, Index batch,
                  Precision precision) {
  Memory memory;
  const Index bytes = plan.workspace_bytes(batch, precision);
  REQUIRE(bytes % sizeof(std::max_align_t) == 0);
  memory.workspace.resize(bytes / sizeof(std::max_align_t));
  std::memset(memory.workspace.data(), static_cast<int>(host::kUnwritten), bytes);
  memory.view = {packed.codes().data(), plan.constants().data(), memory.workspace.data()};
  return memory;
}

std::vector<float> product(const PackedMatrix& packed, const reference::Dense& x,
                           Precision precision, Order order = Order::ascending,
                           Index shared_limit = kLeastShared) {
  const cuda::ProductPlan plan(packed, shared_limit);
  const Memory memory = memory_for(plan, packed, x.rows, precision);
  const host::HostLauncher launcher(order);
  cuda::ProductPipeline pipeline(plan, memory.view, precision, launcher);
  std::vector<float> output(x.rows * packed.spec().rows);
  pipeline.multiply({x.values.data(), ElementType::float32, x.rows, x.cols},
                    {output.data(), ElementType::float32});
  return output;
}

}  // namespace

TEST_CASE("CUDA: every code is multiplied, for one activation and for many") {
  struct Shape {
    Index m, n;
  };
  for (const auto [m, n] : {Shape{7, 3}, Shape{61, 64}, Shape{131, 77}}) {
    for (const Codec codec : {Codec::uniform, Codec::product, Codec::ring, Codec::trellis}) {
      const int most_bits = codec == Codec::trellis ? kMaxTrellisCodeBits : kMaxCodeBits;
      for (int code_bits = kMinCodeBits; code_bits <= most_bits; ++code_bits) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(codec_name(codec));
        CAPTURE(code_bits);
        const PackedMatrix packed = compressed(m, n, codec, code_bits);
        for (const Index batch : {1, 5}) {
          CAPTURE(batch);
          const reference::Dense x = reference::gaussian(batch, n, 72);
          CHECK(reference::product_error(packed, x, product(packed, x, Precision::single)) <= 1e-5);
          CHECK(reference::product_error(packed, x, product(packed, x, Precision::half)) <= 1e-3);
        }
      }
    }
  }
}

TEST_CASE("CUDA: trellis states go around in every segment, wherever its panels end") {
  // 512 rows of the half spectrum, two segments; 514 and 551, whose last panels are short; 4 rows.
  for (const Index m : {1022, 1026, 1100, 7}) {
    for (const auto& [code_bits, state_bits] : {std::pair{1, 16}, {3, 16}, {4, 12}, {8, 14}}) {
      CAPTURE(m);
      CAPTURE(code_bits);
      const PackedMatrix packed = compressed(m, 21, Codec::trellis, code_bits, 0, state_bits);
      for (const Index batch : {1, 6}) {
        const reference::Dense x = reference::gaussian(batch, 21, 73);
        CHECK(reference::product_error(packed, x, product(packed, x, Precision::single)) <= 1e-5);
      }
    }
  }
}

TEST_CASE("CUDA: sizes around panels, groups, parts and tiles, and the low rank") {
  struct Case {
    Index m, n, batch, rank;
  };
  for (const auto [m, n, batch, rank] :
       {Case{1, 1, 1, 0}, Case{1, 1, 9, 0}, Case{1, 40, 2, 0}, Case{40, 1, 7, 1}, Case{2, 2, 5, 1},
        Case{126, 127, 4, 3}, Case{128, 128, 63, 2}, Case{129, 130, 64, 0}, Case{31, 33, 65, 5},
        Case{20, 1023, 2, 0}, Case{20, 1024, 1, 2}, Case{20, 1025, 3, 0}, Case{20, 2060, 1, 1},
        Case{2100, 20, 5, 2}, Case{43, 538, 130, 4}}) {
    CAPTURE(m);
    CAPTURE(n);
    CAPTURE(batch);
    for (const Codec codec : {Codec::ring, Codec::trellis}) {
      CAPTURE(codec_name(codec));
      const PackedMatrix packed = compressed(m, n, codec, 6, rank);
      const reference::Dense x = reference::gaussian(batch, n, 74);
      CHECK(reference::product_error(packed, x, product(packed, x, Precision::single)) <= 1e-5);
      CHECK(reference::product_error(packed, x, product(packed, x, Precision::half)) <= 1e-3);
    }
  }
}

TEST_CASE("CUDA: more activations than share the workspace") {
  const PackedMatrix packed = compressed(6, 9, Codec::ring, 4);
  for (const Index more : {0, 1, 5}) {
    const reference::Dense x = reference::gaussian(cuda::kMostAtOnce + more, 9, 75);
    CHECK(reference::product_error(packed, x, product(packed, x, Precision::half)) <= 1e-3);
  }
}

TEST_CASE("CUDA: no result depends on the order of threads, warps, blocks or copies") {
  for (const Codec codec : {Codec::ring, Codec::trellis}) {
    const PackedMatrix packed = compressed(200, 150, codec, 5, 2);
    for (const Index batch : {2, 70}) {
      const reference::Dense x = reference::gaussian(batch, 150, 76);
      for (const Precision precision : {Precision::single, Precision::half}) {
        const std::vector<float> expected = product(packed, x, precision);
        CHECK(product(packed, x, precision, Order::descending) == expected);
        CHECK(product(packed, x, precision, Order::scattered) == expected);
        CHECK(product(packed, x, precision, Order::ascending, /*shared_limit=*/0) == expected);
      }
    }
  }
}

TEST_CASE("CUDA: products do not depend on the size of the activations") {
  const PackedMatrix packed = compressed(70, 90, Codec::ring, 8);
  for (const Index batch : {1, 5}) {
    for (const float factor : {1e-30f, 1e-12f, 1e12f, 1e30f}) {
      reference::Dense x = reference::gaussian(batch, 90, 77);
      for (Index j = 0; j < 90; ++j) x.values[j] *= factor;  // one of the tokens
      CAPTURE(factor);
      for (Index b = 0; b < batch; ++b) {
        reference::Dense one{1, 90, {x.values.begin() + b * 90, x.values.begin() + (b + 1) * 90}};
        std::vector<float> y = product(packed, x, Precision::single);
        y = {y.begin() + b * 70, y.begin() + (b + 1) * 70};
        CHECK(reference::product_error(packed, one, y) <= 1e-5);
      }
    }
  }
}

TEST_CASE("CUDA: zero activations give zero, and what is not finite shows in the output") {
  const PackedMatrix packed = compressed(40, 70, Codec::trellis, 4);
  for (const Index batch : {1, 5}) {
    reference::Dense x{batch, 70, std::vector<float>(batch * 70, 0.0f)};
    for (const float value : product(packed, x, Precision::half)) CHECK(value == 0.0f);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      x.values[3] = bad;
      const std::vector<float> y = product(packed, x, Precision::half);
      for (Index i = 0; i < 40; ++i) CHECK_FALSE(std::isfinite(y[i]));
      for (Index i = 40; i < batch * 40; ++i) CHECK(y[i] == 0.0f);
    }
  }
}

TEST_CASE("CUDA: activations and outputs of 16 bits, rows apart from each other") {
  const PackedMatrix packed = compressed(50, 30, Codec::ring, 6);
  const cuda::ProductPlan plan(packed, kLeastShared);
  const host::HostLauncher launcher;
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16}) {
    for (const Index batch : {2, 6}) {
      constexpr Index kStride = 37;
      reference::Dense x = reference::gaussian(batch, 30, 78);
      std::vector<std::uint16_t> stored(batch * kStride, 0x7fff), out(batch * 50);
      for (Index i = 0; i < batch * 30; ++i) {
        std::uint16_t* place = &stored[i / 30 * kStride + i % 30];
        cuda::store_number(x.values[i], type, 0, place);
        x.values[i] = cuda::load_number(place, type, 0);
      }
      const Memory memory = memory_for(plan, packed, batch, Precision::half);
      cuda::ProductPipeline pipeline(plan, memory.view, Precision::half, launcher);
      pipeline.multiply({stored.data(), type, batch, kStride}, {out.data(), type});
      std::vector<float> y;
      for (Index i = 0; i < batch * 50; ++i) y.push_back(cuda::load_number(out.data(), type, i));
      // Half an ulp of the output's 8 or 11 bits, and the product's own 1e-3.
      const double rounding = type == ElementType::bfloat16 ? 0x1p-9 : 0x1p-12;
      CHECK(reference::product_error(packed, x, y) <= 1e-3 + rounding);
    }
  }
}

TEST_CASE("CUDA: conversions of 16 bits round to nearest even and keep what is not finite") {
  CHECK(cuda::float_to_brain(1.0f) == 0x3f80);
  CHECK(cuda::float_to_brain(1.00390625f) == 0x3f80);  // halfway, down to even
  CHECK(cuda::float_to_brain(1.01171875f) == 0x3f82);  // halfway, up to even
  CHECK(cuda::float_to_brain(3.4e38f) == 0x7f80);
  CHECK(std::isinf(cuda::brain_to_float(0xff80)));
  CHECK(std::isnan(
      cuda::brain_to_float(cuda::float_to_brain(std::numeric_limits<float>::quiet_NaN()))));
}

TEST_CASE("CUDA: shared memory of kernels stays within what every device gives unasked") {
  constexpr Index kUnasked = 48 << 10;
  CHECK(cuda::PointProduct<cuda::ConstellationTable, 10>::shared_bytes() <= kUnasked);
  CHECK(cuda::PointProduct<cuda::TrellisTable, 8>::shared_bytes() <= kUnasked);
  CHECK(cuda::DecodePanels<cuda::TrellisTable>::shared_bytes() <= kUnasked);
  CHECK(cuda::PanelProduct<1>::shared_bytes() <= kUnasked);
  CHECK(cuda::PanelProduct<2>::shared_bytes() <= kUnasked);
  CHECK(cuda::LowRankInner::shared_bytes() <= kUnasked);
}

TEST_CASE("CUDA: without a usable GPU the reason is given, and nothing else happens") {
  const std::optional<std::string> reason = cuda::unavailable_reason();
  CHECK((cuda::device_count() > 0) == !reason.has_value());
  const PackedMatrix packed = compressed(8, 8, Codec::ring, 4);
  if (reason) {
    CHECK(reason->size() > 20);
    CHECK_THROWS_WITH_AS(cuda::Product(packed, 0), ("no GPU can be used: " + *reason).c_str(),
                         Error);
  } else {
    CHECK_THROWS_AS(cuda::Product(packed, cuda::device_count()), Error);
  }
}

TEST_CASE("CUDA: constants are about as large as documented") {
  const PackedMatrix packed = compressed(1000, 800, Codec::ring, 8);
  const cuda::ProductPlan plan(packed, kLeastShared);
  const Index documented = 14 * (1000 + 800), points = 8 * 256;
  CHECK(plan.constants().size() <= static_cast<std::size_t>(documented + points));
  CHECK(plan.constants().size() >= static_cast<std::size_t>(documented * 9 / 10));
}

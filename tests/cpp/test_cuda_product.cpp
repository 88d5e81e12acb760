// The product of cpp/src/cuda, kernel after kernel on the host, against the decoded weight.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cuda/product_pipeline.hpp"
#include "host_block.hpp"
#include "llava_fa/error.hpp"
#include "reference.hpp"

using namespace llava_fa;
using host::Order;

namespace {

constexpr Index kManyBytes = 99 << 10;  // shared memory of the smallest device

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
                           Index shared_limit = kManyBytes) {
  const cuda::ProductPlan plan(packed, shared_limit);
  const Memory memory = memory_for(plan, packed, x.rows, precision);
  host::HostLauncher launcher(order);
  cuda::ProductPipeline pipeline(plan, memory.view, precision, launcher);
  std::vector<float> output(x.rows * packed.spec().rows);
  pipeline.multiply({x.values.data(), cuda::ElementType::float32, x.rows, x.cols},
                    {output.data(), cuda::ElementType::float32});
  return output;
}

// Relative distance from the float64 product with the decoded weight.
double relative_error(const PackedMatrix& packed, const reference::Dense& x,
                      const std::vector<float>& output) {
  const Index m = packed.spec().rows, n = packed.spec().cols;
  std::vector<float> dense(m * n);
  packed.decode(dense.data());
  double error = 0, energy = 0;
  for (Index b = 0; b < x.rows; ++b) {
    for (Index i = 0; i < m; ++i) {
      double y = 0;
      for (Index j = 0; j < n; ++j) y += double(x.at(b, j)) * dense[i * n + j];
      error += std::pow(y - output[b * m + i], 2);
      energy += y * y;
    }
  }
  return std::sqrt(error / energy);
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
          CHECK(relative_error(packed, x, product(packed, x, Precision::single)) <= 1e-5);
          CHECK(relative_error(packed, x, product(packed, x, Precision::half)) <= 1e-3);
        }
      }
    }
  }
}

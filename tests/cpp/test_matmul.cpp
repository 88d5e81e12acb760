// Packed product against the decoded dense weight.
#include <doctest/doctest.h>

#include "llava_fa/error.hpp"
#include "llava_fa/matmul.hpp"
#include "llava_fa/runtime.hpp"
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

TEST_CASE("the packed product equals the dense one to 1e-5") {
  struct Case {
    Index m, n, batch, rank;
  };
  for (const auto [m, n, batch, rank] :
       {Case{1, 1, 1, 0}, Case{1, 9, 3, 1}, Case{9, 1, 2, 1}, Case{64, 48, 1, 0},
        Case{37, 53, 5, 4}, Case{600, 32, 20, 3}, Case{32, 151, 4, 0}}) {
    for (const bool signs : {true, false}) {
      CAPTURE(m);
      CAPTURE(n);
      const reference::Dense weight = reference::gaussian(m, n, 51);
      const PackedMatrix packed = compress_matrix(weight.view(), options_for(rank, signs)).matrix;
      std::vector<float> dense(m * n), output(batch * m);
      packed.decode(dense.data());
      const reference::Dense x = reference::gaussian(batch, n, 52);
      matmul(packed, x.view(), output.data());
      double error = 0, energy = 0;
      for (Index b = 0; b < batch; ++b) {
        for (Index i = 0; i < m; ++i) {
          double y = 0;
          for (Index j = 0; j < n; ++j) y += double(x.at(b, j)) * dense[i * n + j];
          error += std::pow(y - output[b * m + i], 2);
          energy += y * y;
        }
      }
      CHECK(std::sqrt(error) <= 1e-5 * std::sqrt(energy));
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

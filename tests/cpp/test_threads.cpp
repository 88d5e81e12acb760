// Callers on many threads at once, each stage with threads of its own: results are those of one
// caller. The lengths occur in no other test, so that what is prepared at first use is prepared
// here.
#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "llava_fa/matmul.hpp"
#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/runtime.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

constexpr int kCallers = 6;
constexpr Index kRows = 298, kCols = 206, kTokens = 70;  // as many tokens as need decoded blocks

PackedMatrix compressed(Codec codec) {
  CompressionOptions options;
  options.joint.codec = codec;
  options.joint.code_bits = 4;
  options.joint.rank = codec == Codec::ring ? 3 : 0;
  if (codec == Codec::trellis) options.joint.state_bits = 8;
  return compress_matrix(reference::gaussian(kRows, kCols, 5).view(), options).matrix;
}

// Products of one, a few and many tokens, and the decoded matrix, one after the other.
std::vector<float> results(const PackedMatrix& packed) {
  const reference::Dense x = reference::gaussian(kTokens, kCols, 6);
  std::vector<float> out(static_cast<std::size_t>(kRows * kCols));
  packed.decode(out.data());
  for (const Index tokens : {Index{1}, Index{3}, kTokens}) {
    std::vector<float> product(static_cast<std::size_t>(tokens * kRows));
    matmul(packed, {x.values.data(), tokens, kCols, kCols}, product.data(), Precision::single);
    out.insert(out.end(), product.begin(), product.end());
  }
  return out;
}

// What each of the callers gets, who begin together.
template <typename Call>
std::vector<std::vector<float>> at_once(Call call) {
  std::vector<std::vector<float>> found(kCallers);
  std::atomic<int> waiting{kCallers};
  std::vector<std::jthread> callers;
  for (std::vector<float>& result : found) {
    callers.emplace_back([&] {
      for (--waiting; waiting > 0;) std::this_thread::yield();
      result = call();
    });
  }
  callers.clear();  // waits for all
  return found;
}

}  // namespace

TEST_CASE("many threads compress, decode and multiply at once as one does") {
  set_num_threads(3);
  for (const Codec codec : {Codec::ring, Codec::product, Codec::trellis}) {
    CAPTURE(static_cast<int>(codec));
    const auto of_their_own = at_once([&] { return results(compressed(codec)); });
    const PackedMatrix shared = compressed(codec);
    const auto of_one = at_once([&] { return results(shared); });
    const std::vector<float> expected = results(shared);
    for (int i = 0; i < kCallers; ++i) {
      CHECK(of_their_own[i] == expected);
      CHECK(of_one[i] == expected);
    }
  }
  set_num_threads(0);
}

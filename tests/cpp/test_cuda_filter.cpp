// The filter of error feedback by cpp/src/cuda, kernel after kernel on the host, against the CPU's.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "cuda_compression.hpp"
#include "llava_fa/error.hpp"

using namespace llava_fa;
using namespace llava_fa::host;

namespace {

// The filter where kernels have left it, in a workspace exactly as large as asked for.
FeedbackFilter found_filter(std::span<const float> moment, std::span<const float> multiplier,
                            Index n, Order order = Order::ascending,
                            Index shared_limit = kLeastShared) {
  const cuda::CompressionPlan plan(2, n, options_for(Codec::ring, 4), shared_limit);
  const auto layout = plan.layout(/*fed_back=*/true);
  std::vector<std::max_align_t> workspace(layout.bytes / sizeof(std::max_align_t));
  std::memset(workspace.data(), static_cast<int>(kUnwritten), layout.bytes);
  HostLauncher queue(order);
  const cuda::WorkMemory memory(workspace.data(), queue);
  memory.upload(plan.constants(), layout.constants);
  cuda::FilterPipeline stages(plan, layout, memory);
  find_filter(stages, {moment.data(), n, n, n}, multiplier);
  FeedbackFilter filter;
  filter.size = n;
  const float* const diagonal = memory.at<float>(layout.diagonal);
  const float* const blocks = memory.at<float>(layout.filter);
  filter.diagonal.assign(diagonal, diagonal + n);
  filter.blocks = FloatBuffer(FeedbackFilter::floats(n));
  std::copy_n(blocks, filter.blocks.count(), filter.blocks.data());
  return filter;
}

bool same(const FeedbackFilter& a, const FeedbackFilter& b) {
  return a.diagonal == b.diagonal &&
         std::equal(a.blocks.data(), a.blocks.data() + a.blocks.count(), b.blocks.data());
}

double distance(const float* a, const float* b, Index count) {
  double squares = 0, of_b = 0;
  for (Index i = 0; i < count; ++i) {
    squares += std::pow(double(a[i]) - b[i], 2);
    of_b += std::pow(double(b[i]), 2);
  }
  return std::sqrt(squares / std::max(of_b, 1.0));
}

void check_close(const FeedbackFilter& found, const FeedbackFilter& expected, double tolerance) {
  CHECK(distance(found.diagonal.data(), expected.diagonal.data(), expected.size) <= tolerance);
  CHECK(distance(found.blocks.data(), expected.blocks.data(), expected.blocks.count()) <=
        tolerance);
}

}  // namespace

TEST_CASE("CUDA: the filter of a second moment is the CPU's, whatever the size") {
  // One block, a whole one, one column more; primes; a transform too long for shared memory.
  for (const Index n : {1, 2, 3, 21, 64, 65, 97, 128, 150, 262}) {
    CAPTURE(n);
    const Moments moments(n);
    std::vector<float> multiplier(n);
    for (Index j = 0; j < n; ++j) multiplier[j] = (j % 3 ? 1.0f : -1.0f) * (0.5f + float(j % 7));
    check_close(found_filter(moments.full, {}, n), feedback_filter({moments.full.data(), n, n, n}),
                1e-5);
    check_close(found_filter(moments.full, multiplier, n, Order::scattered, 0),
                feedback_filter({moments.full.data(), n, n, n}, multiplier), 1e-5);
  }
}

TEST_CASE("CUDA: filters of moments of any size, of little rank, and of zeros") {
  constexpr Index kChannels = 90;
  for (const float size : {1e-30f, 1e30f}) {
    Moments moments(kChannels);
    for (float& entry : moments.full) entry *= size;
    check_close(found_filter(moments.full, {}, kChannels),
                feedback_filter({moments.full.data(), kChannels, kChannels, kChannels}), 1e-5);
  }
  std::vector<float> few(kChannels * kChannels);  // of inputs that are multiples of one
  for (Index i = 0; i < kChannels * kChannels; ++i) {
    few[i] = std::sin(float(i / kChannels)) * std::sin(float(i % kChannels));
  }
  check_close(found_filter(few, {}, kChannels),
              feedback_filter({few.data(), kChannels, kChannels, kChannels}), 1e-4);
  const std::vector<float> zeros(kChannels * kChannels, 0.0f);
  CHECK(same(found_filter(zeros, {}, kChannels),
             feedback_filter({zeros.data(), kChannels, kChannels, kChannels})));
}

TEST_CASE("CUDA: a moment that is not positive semidefinite is damped more, and refused at last") {
  constexpr Index kChannels = 70;
  // Eigenvalues 1 + excess (n - 1) and 1 - excess, of which the mean is 1.
  const auto moment = [](float excess) {
    std::vector<float> entries(kChannels * kChannels, excess);
    for (Index j = 0; j < kChannels; ++j) entries[j * kChannels + j] = 1.0f;
    return entries;
  };
  const auto slightly = moment(-0.9f / (kChannels - 1) - 0.005f);  // least eigenvalue below -0.1
  const FeedbackFilter expected =
      feedback_filter({slightly.data(), kChannels, kChannels, kChannels});
  CHECK(expected.damping > kDamping);
  check_close(found_filter(slightly, {}, kChannels), expected, 1e-4);
  const auto far = moment(-0.2f);
  CHECK_THROWS_AS(feedback_filter({far.data(), kChannels, kChannels, kChannels}), Error);
  CHECK_THROWS_WITH_AS(found_filter(far, {}, kChannels),
                       doctest::Contains("is not positive semidefinite: adding its mean diagonal"),
                       Error);
}

TEST_CASE("CUDA: no bit of a filter depends on the order of threads or on where buffers are") {
  const Moments moments(140);
  const FeedbackFilter expected = found_filter(moments.full, {}, 140);
  for (const Order order : {Order::descending, Order::scattered}) {
    CHECK(same(found_filter(moments.full, {}, 140, order), expected));
  }
  for (const Index limit : {Index{0}, kMostShared}) {
    CHECK(same(found_filter(moments.full, {}, 140, Order::ascending, limit), expected));
  }
}

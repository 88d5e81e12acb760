// Counter-based random numbers on the CPU: entry i of a block depends on (seed, i) alone.
#include <cmath>
#include <numbers>

#include "../counter_random.hpp"
#include "backend.hpp"
#include "parallel.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kBlock = 4096;
constexpr double kNanosecondsPerEntry = 50.0;

}  // namespace

void CpuBackend::fill_gaussian(std::uint64_t seed, Index first_column, int threads,
                               ComplexMatrix& out) const {
  const Index cols = out.cols();
  const int team =
      worthwhile_threads(threads, kNanosecondsPerEntry * out.rows() * (cols - first_column));
  parallel_for(ceil_div(out.count(), kBlock), team, [&](Index item) {
    const Index end = std::min(out.count(), (item + 1) * kBlock);
    for (Index i = item * kBlock; i < end; ++i) {
      if (i % cols < first_column) continue;
      const std::uint64_t position = static_cast<std::uint64_t>(i);
      const double radius = std::sqrt(-std::log(unit_interval(seed, 2 * position)));
      const double angle = 2.0 * std::numbers::pi * unit_interval(seed, 2 * position + 1);
      out.real()[i] = static_cast<float>(radius * std::cos(angle));
      out.imag()[i] = static_cast<float>(radius * std::sin(angle));
    }
  });
}

}  // namespace llava_fa::cpu

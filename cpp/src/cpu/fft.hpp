// Complex DFTs of any length, kLanes sequences at a time (planar, lane-interleaved).
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "lanes.hpp"

namespace llava_fa::cpu {

struct UnitRoot {
  float re;
  float im;
};

// exp(-2 pi i numerator / denominator), exact argument reduction before the double evaluation.
UnitRoot unit_root(Index numerator, Index denominator);

// Split complex sequence of lane vectors.
struct LaneSpan {
  Lane* re;
  Lane* im;
};

// One plan per length, made when it is first asked for and kept; thread-safe.
template <typename Plan>
const Plan& cached_plan(Index length) {
  static std::mutex mutex;
  static std::map<Index, std::unique_ptr<Plan>> plans;
  const std::lock_guard lock(mutex);
  auto& plan = plans[length];
  if (!plan) plan = std::make_unique<Plan>(length);
  return *plan;
}

// Plan of an unnormalized forward DFT, X[k] = sum_j x[j] exp(-2 pi i j k / length).
//
// 1. Lengths whose prime factors are at most kLargestDirectPrime: Stockham autosort passes of radix
//    8, 5, 4, 3, 2, then the odd primes above 5 as small dense DFTs that use the symmetry j ↔ p -
//    j.
// 2. Other lengths: Bluestein's chirp transform on a convolution of smooth length.
//
// Immutable after construction; safe to use from many threads, each with its own scratch.
class FftPlan {
 public:
  explicit FftPlan(Index length);
  ~FftPlan();
  FftPlan(const FftPlan&) = delete;
  FftPlan& operator=(const FftPlan&) = delete;

  Index length() const { return length_; }
  // Lane vectors of scratch that `forward` needs.
  Index scratch_lanes() const;

  // Transforms `data` (length lane vectors per plane). The result is in the returned span, which is
  // `data` or lies in `scratch`. The inverse DFT is forward with the planes swapped on both sides.
  LaneSpan forward(LaneSpan data, Lane* scratch) const;

  // Shared plan from the process-wide cache.
  static const FftPlan& cached(Index length) { return cached_plan<FftPlan>(length); }

 private:
  struct Pass {
    int radix;
    Index groups;                 // twiddle groups: remaining length / radix
    Index stride;                 // lane vectors per group
    std::vector<float> twiddles;  // groups * (radix - 1) * 2, row k: w^(k j), j = 1 .. radix-1
    std::vector<float> roots;     // radix * 2 (cos, sin) for odd primes above 5
  };
  struct Chirp {
    std::unique_ptr<FftPlan> convolution;
    std::vector<float> chirp;   // length * 2: exp(-i pi k^2 / length)
    std::vector<float> filter;  // convolution length * 2: DFT of the conjugate chirp, scaled
  };

  void plan_passes(const std::vector<int>& radices);
  void plan_chirp();
  LaneSpan run_passes(LaneSpan data, Lane* scratch) const;
  LaneSpan run_chirp(LaneSpan data, Lane* scratch) const;

  Index length_;
  std::vector<Pass> passes_;
  std::unique_ptr<Chirp> chirp_;
};

}  // namespace llava_fa::cpu

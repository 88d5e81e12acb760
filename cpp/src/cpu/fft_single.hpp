// The DFT of one sequence, spread over the lanes: for vectors, where FftPlan would transform kLanes
// sequences for the price of one.
#pragma once

#include "fft.hpp"

namespace llava_fa::cpu {

// Plan of an unnormalized forward DFT of one sequence whose length is a multiple of kLanes^2.
//
// 1. Lane s transforms the elements s, s + kLanes, ... : one FftPlan of length / kLanes.
// 2. Element k of lane s is turned by exp(-2 pi i s k / length).
// 3. DFTs of length kLanes across lanes, for kLanes values of k at a time.
//
// Immutable after construction.
class SingleFftPlan {
 public:
  explicit SingleFftPlan(Index length);

  static bool applies(Index length) { return length % (kLanes * kLanes) == 0; }

  // real and imag (length) in place. The inverse DFT is forward with the planes swapped.
  void forward(float* real, float* imag) const;

  // Shared plan from the process-wide cache.
  static const SingleFftPlan& cached(Index length) { return cached_plan<SingleFftPlan>(length); }

 private:
  Index length_;
  const FftPlan& within_;
  const FftPlan& across_;
  FloatBuffer turn_real_, turn_imag_;  // (length / kLanes, kLanes)
};

}  // namespace llava_fa::cpu

// The DFT of one real sequence, spread over the lanes: for vectors, where FftPlan would transform
// kLanes sequences for the price of one.
#pragma once

#include "fft.hpp"

namespace llava_fa::cpu {

// Plan of one real sequence's half spectrum, unitary and with Parseval weights, and its inverse.
//
// 1. Two neighbours become one complex number: a complex DFT of half the length.
// 2. Lane s transforms the numbers s, s + kLanes, ... : one FftPlan of half the length / kLanes.
// 3. Number k of lane s is turned by exp(-2 pi i s k / half the length).
// 4. DFTs of length kLanes across lanes, for kLanes values of k at a time.
// 5. The spectra E and O of even and odd entries follow by conjugate symmetry,
//    Z[k] = E[k] + i O[k], and X[k] = E[k] + exp(-2 pi i k / length) O[k].
//
// Immutable after construction.
class SingleFftPlan {
 public:
  explicit SingleFftPlan(Index length);

  // Lanes must share the numbers evenly, and hold a whole block of step 4.
  static bool applies(Index length) {
    return length % (2 * kLanes) == 0 && length >= 2 * kLanes * kLanes;
  }

  // values (length) to real and imag (length / 2 + 1).
  void forward(const float* values, float* real, float* imag) const;
  // The reverse; what the imaginary parts of the first and the last entry are does not matter.
  void inverse(const float* real, const float* imag, float* values) const;

  // Shared plan from the process-wide cache.
  static const SingleFftPlan& cached(Index length) { return cached_plan<SingleFftPlan>(length); }

 private:
  struct Planes {
    float* real;
    float* imag;
  };
  class Workspace;

  // Steps 2 to 4, of the workspace's numbers.
  Planes transform(Workspace& work) const;
  // Steps 3 and 4 of numbers [k, k + kLanes) of all lanes.
  void transform_across(LaneSpan numbers, Index k, Planes out) const;

  Index half_;
  const FftPlan& within_;
  const FftPlan& across_;
  FloatBuffer turn_real_, turn_imag_;  // (half / kLanes, kLanes): of step 3
  FloatBuffer odd_real_, odd_imag_;    // (half): of step 5
};

}  // namespace llava_fa::cpu

// What kernels know of a transform's length, and the tables behind it. Twin of ../cpu/fft.hpp.
#pragma once

#include "complex.hpp"
#include "constants.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa::cuda {

inline constexpr int kMostPasses = 32;

// A complex DFT of `sequence` elements.
struct FftPlan {
  int sequence;
  int length;  // of the passes: `sequence`, or that of the convolution
  int pass_count;
  int radix[kMostPasses];
  const Complex* roots;           // exp(-2 pi i t / length), t < length
  const Complex* chirp;           // (sequence), or null: no convolution
  const Complex* chirp_spectrum;  // (length), divided by length
};

// A unitary real DFT of n elements: of n / 2 complex ones, each of two neighbours, if n is even.
struct RealFftPlan {
  FftPlan complex;
  Index n;
  float unitary;         // 1 / sqrt(n)
  const Complex* turns;  // exp(-2 pi i l / n), l <= n / 2; of even n
};

// Tables of a real DFT as constants, and the plan that points to them once they are in place.
class RealFftTables {
 public:
  RealFftTables(Index n, ConstantsBuilder& constants);

  RealFftPlan at(const std::byte* constants) const;

  // Elements of each of the two buffers of a transform.
  Index buffer_elements() const { return plan_.complex.length + 1; }

 private:
  void plan_complex(int sequence, ConstantsBuilder& constants);
  void add_chirp(ConstantsBuilder& constants);

  RealFftPlan plan_ = {};
  Index roots_ = 0, chirp_ = 0, chirp_spectrum_ = 0, turns_ = 0;  // places in the constants
  bool convolves_ = false;
};

}  // namespace llava_fa::cuda

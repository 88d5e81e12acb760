// What kernels know of a transform's length, and the tables behind it. Twin of ../cpu/fft.hpp.
#pragma once

#include "complex.hpp"
#include "constants.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa::cuda {

inline constexpr int kMostPasses = 32;
inline constexpr Index kTransformBlocks = 256;  // that share long transforms' buffers

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

// Tables of a complex DFT as constants, and the plan that points to them once they are in place.
class FftTables {
 public:
  FftTables(Index sequence, ConstantsBuilder& constants);

  FftPlan at(const std::byte* constants) const;

  // Elements of each of the two buffers of a transform.
  Index buffer_elements() const { return plan_.length + 1; }

 private:
  void add_chirp(ConstantsBuilder& constants);

  FftPlan plan_ = {};
  Index roots_ = 0, chirp_ = 0, chirp_spectrum_ = 0;  // places in the constants
  bool convolves_ = false;
};

// The same of a real DFT.
class RealFftTables {
 public:
  RealFftTables(Index n, ConstantsBuilder& constants);

  RealFftPlan at(const std::byte* constants) const;
  Index buffer_elements() const { return complex_.buffer_elements(); }

 private:
  Index n_;
  Index turns_;  // place in the constants
  FftTables complex_;
};

// Shared memory of a transform with two buffers of so many elements; 0 if they are too long for it,
// and have to be in the workspace.
inline Index shared_bytes_of_transform(Index elements, Index shared_limit) {
  const Index bytes = 2 * elements * static_cast<Index>(sizeof(Complex));
  return bytes <= shared_limit ? bytes : 0;
}

}  // namespace llava_fa::cuda

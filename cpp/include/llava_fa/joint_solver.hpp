// Joint low rank and quantization of a half spectrum (design section 6).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "llava_fa/constellation.hpp"
#include "llava_fa/feedback.hpp"
#include "llava_fa/polar_codec.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

inline constexpr int kFactorBitsFloat16 = 16;  // factors as pairs of binary16 instead of codes

struct JointOptions {
  Codec codec = Codec::ring;
  int code_bits = 8;    // bits per complex entry, 1 .. 10 (trellis: 1 .. 8)
  Index rank = 0;       // complex rank, 0 .. min(rows, cols)
  int factor_bits = 8;  // 1 .. 10 polar code bits per complex entry of a factor, or 16
  int max_alternations = 10;
  std::uint64_t seed = 0;
  int state_bits = kDefaultStateBits;  // `trellis` only
  bool unbiased = false;               // enlarge the final row scales, see solve_joint
};

// The root R of what errors cost; at most one of the two.
struct JointWeight {
  std::span<const float> column;           // (cols) positive root weights d, R = diag(d); or empty
  const FeedbackFilter* filter = nullptr;  // triangular R: codes are found with error feedback
};

// One low-rank factor as stored, component by component: row c belongs to singular component c.
struct StoredFactor {
  PolarCodes codes;                    // factor_bits <= 10: (rank, length)
  std::vector<std::uint16_t> float16;  // factor_bits == 16: (rank, length, 2)
  ComplexMatrix decoded;               // (rank, length), exactly what the stored bits decode to
};

StoredFactor store_factor(ComplexMatrix&& factor, int factor_bits);

struct JointSolution {
  PolarCodes codes;    // of Ã - L1 L2
  StoredFactor left;   // transposed: (rank, rows)
  StoredFactor right;  // (rank, cols)
  // Squared error under R after each accepted alternation, relative to the energy of Ã.
  // Entry 0 is the sequential solution (one truncated SVD, then codes); the sequence never rises.
  std::vector<double> objective;
};

// Minimizes ||(Ã - Q - L1 L2) R||_F over codes Q and complex rank r: alternates (a) truncated SVD
// of (Ã - Q) R, un-weighted and stored, and (b) codes of Ã - L1 L2. The objective always uses the
// values that the stored bits decode to, so Q also absorbs the factors' rounding. Stops when it
// rises or improves by less than 0.1 %, keeps the best iterate, and finishes with a refit of L1 L2
// that is kept only if it lowers the objective.
//
// Codes of least squared error are too small: <x, q> = (1 - D) <x, x>, a factor that is the same in
// every matrix of a model, so that it multiplies from layer to layer while noise only adds up. With
// `unbiased`, each row scale is finally enlarged until <x, q> = <x, x> for x = Ã - L1 L2; the
// squared error rises from D to D / (1 - D), and all of it is noise; `objective` is of before.
// Under a feedback filter codes decode 1 / (1 - D) larger from the start, and `unbiased` keeps the
// final refit from shrinking them: the filter's metric sees little of the directions of little
// input.
//
// spectrum (rows, cols) complex, entries of order one (normalize first)
// Throws Error(invalid_argument) if an option is out of range.
JointSolution solve_joint(const ComplexMatrix& spectrum, const JointOptions& options,
                          const JointWeight& weight = {});

}  // namespace llava_fa

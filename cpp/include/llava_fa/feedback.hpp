// Error feedback in the frequency domain (design section 5): the factored second moment of a
// layer's input, under which codes of later columns make up for the errors of earlier ones.
#pragma once

#include <span>
#include <vector>

#include "llava_fa/trellis.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

// Σ̃ + λ I = R Rᴴ with R = M diag(D)^1/2, M unit upper triangular, for the Hermitian second moment
// Σ̃ = conj(F_n) Σ F_nᵀ of n input frequencies. The output error of an error matrix Δ is
// ||Δ R||_F^2 = sum_j D_j |(Δ M)_j|^2 over the rows of Δ, and (Δ M)_j holds errors of columns up to
// j only: if column j is coded as the value nearest to a_j + sum_{i<j} (a_i - q_i) M_ij, each term
// is as small as the code allows. This equals GPTQ's recursion, without inverting Σ̃.
struct FeedbackFilter {
  static constexpr Index kBlock = 64;  // columns per block

  Index size = 0;               // n
  double damping = 0;           // λ, relative to the mean diagonal of Σ̃
  std::vector<float> diagonal;  // (n) D, relative to the mean diagonal of Σ̃
  // Block b holds columns [first, first + width), first = b · kBlock: rows 0 .. first + width - 1,
  // each `width` real parts of M, then `width` imaginary parts; zero on and below the diagonal.
  FloatBuffer blocks;

  Index block_count() const { return (size + kBlock - 1) / kBlock; }
  Index block_width(Index b) const { return std::min(kBlock, size - b * kBlock); }
  // Floats before block b: every earlier one holds kBlock columns.
  static constexpr Index block_offset(Index b) { return b * (b + 1) * kBlock * kBlock; }
  // Floats of all blocks.
  static constexpr Index floats(Index size) {
    const Index last = (size - 1) / kBlock;
    return block_offset(last) + 2 * size * (size - last * kBlock);
  }
  const float* block(Index b) const { return blocks.data() + block_offset(b); }
};

// λ of the first attempt, relative to the mean diagonal; ten times as much for each further one.
inline constexpr double kDamping = 0.01;

// second_moment    (n, n) E[x xᵀ] of the layer's input, symmetric
// input_multiplier (n) or empty: x is multiplied by it (signs and channel scales)
// Throws Error(invalid_argument) if the matrix is not square, not symmetric to 10^-3, or so far
// from positive semidefinite that a damping of 1 does not help. A zero matrix gives the filter of
// the identity.
FeedbackFilter feedback_filter(const MatrixView& second_moment,
                               std::span<const float> input_multiplier = {});

// What feedback leaves of code noise: the output error per kept entry when the (Δ M)_j = t_j - q_j
// are white with power one, relative to the mean diagonal of Σ̃. Without feedback both would be 1.
struct FedBackNoise {
  double damped = 0;  // tr(Δ (Σ̃ + λ I) Δᴴ), what feedback minimizes: mean_j D_j
  // tr(Δ Σ̃ Δᴴ) = mean_j D_j - λ ||M⁻¹||_F² / n, the second term estimated from 32 probes of random
  // signs to about n^-1/2 of itself; never negative.
  double exact = 0;
};
FedBackNoise fed_back_noise(const FeedbackFilter& filter);

}  // namespace llava_fa

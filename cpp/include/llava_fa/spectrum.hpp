// Half spectrum of a real matrix over its output axis (design section 1; LLaVA-FA section 3.1).
#pragma once

#include <span>

#include "llava_fa/types.hpp"

namespace llava_fa {

// Number of kept rows floor(m/2) + 1 for m output channels.
constexpr Index half_rows(Index output_channels) { return output_channels / 2 + 1; }

// omega_k: 1 for k = 0 and, if m is even, k = m/2; sqrt(2) otherwise.
float parseval_weight(Index k, Index output_channels);

// Ã[k, l] = omega_k * (F_m W F_n^T)[k, l] for k = 0 .. floor(m/2), with unitary DFTs
// F_n[l, j] = exp(-2 pi i j l / n) / sqrt(n). Then ||Ã||_F = ||W||_F exactly.
//
// weight            (m, n) float32, m, n >= 1
// output_multiplier (m) or empty: row i is multiplied before the transform
// input_multiplier  (n) or empty: column j is multiplied before the transform
// returns           (floor(m/2) + 1, n) complex
// Throws Error(invalid_argument) on empty shapes or multipliers of another length.
ComplexMatrix half_spectrum(const MatrixView& weight, std::span<const float> output_multiplier = {},
                            std::span<const float> input_multiplier = {});

// Inverse of half_spectrum: divides by omega, inverse DFT over columns, complex-to-real over rows,
// then multiplies rows and columns. The imaginary parts that a real matrix cannot have (rows that
// are their own mirror) are projected out. Consumes `spectrum`.
//
// spectrum (floor(m/2) + 1, n); weight_out: m * n floats, row-major.
void inverse_half_spectrum(ComplexMatrix&& spectrum, Index output_channels, float* weight_out,
                           std::span<const float> output_multiplier = {},
                           std::span<const float> input_multiplier = {});

// Unitary one-dimensional pieces, used on activations: the half spectrum over the rows of a real
// (length, batch) matrix with Parseval weights, and its inverse.
ComplexMatrix half_spectrum_over_rows(const MatrixView& values);
void inverse_half_spectrum_over_rows(const ComplexMatrix& spectrum, Index length,
                                     float* values_out);

}  // namespace llava_fa

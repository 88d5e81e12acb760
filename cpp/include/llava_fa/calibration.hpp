// Optional diagonal calibration (ODC) and random signs (design sections 1 and 4).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "llava_fa/types.hpp"

namespace llava_fa {

// none:     no scaling.
// spatial:  diagonal scales of rows and columns chosen before the transform.
// spectral: the paper's variant, diagonal weights of the low-rank step in the frequency domain.
enum class Odc { none = 0, spatial = 1, spectral = 2 };

std::string_view odc_name(Odc odc);
Odc odc_from_name(std::string_view name);  // Error(invalid_argument) on unknown names

// Second moments known from data. Empty spans mean "unknown": all ones are assumed. Whoever has the
// full input matrix passes its diagonal too.
struct SecondMoments {
  std::span<const float> input_diagonal;   // (n) E[x_j^2]
  std::span<const float> input_full;       // (n * n) E[x x^T], row-major, or empty
  std::span<const float> output_diagonal;  // (m) mean squared output gradient
};

// Throws Error(invalid_argument) on wrong lengths or negative mean squares of an (m, n) weight,
// Error(non_finite) on NaN or infinity.
void validate(const SecondMoments& moments, Index rows, Index cols);

// Sums of squares of a weight's output channels (rows, m) and input channels (cols, n).
struct ChannelEnergies {
  std::vector<double> rows;
  std::vector<double> cols;

  double total() const;
};

// Energies of diag(output) W diag(input); empty multipliers are ones.
// Throws Error(non_finite) naming the first NaN or infinite entry.
ChannelEnergies channel_energies(const MatrixView& weight,
                                 std::span<const float> output_multiplier = {},
                                 std::span<const float> input_multiplier = {});

// Positive multipliers used when decoding: W = diag(out) · W̄ · diag(in). Rounded to binary16, with
// geometric mean one, and within [2^-8, 2^8]. A side is empty where scales are not worth their
// bits.
struct DiagonalScales {
  std::vector<float> in;   // (n)
  std::vector<float> out;  // (m)
};

// Spatial ODC: column multipliers before the transform c_j = (s_j / w_j)^1/2 and rows
// r_i = (t_i / w_i)^1/2, the Cauchy-Schwarz minimizers of
// (sum r_i^2 c_j^2 W_ij^2)(sum t_i^2 / r_i^2)(sum s_j^2 / c_j^2); the result holds 1/c and 1/r.
// s^2 and t^2 are damped by a tenth of their mean; channels without weight get a neutral scale. By
// Cauchy-Schwarz the noise falls by (sum s w)^2 / (sum s^2 sum w^2); a side is scaled only if that
// is worth more than the bits of its scales spent on codes, 2^(-2 · 16/m) for columns and 2^(-2 ·
// 16/n) for rows.
DiagonalScales diagonal_scales(const ChannelEnergies& energies, const SecondMoments& moments);

// Spectral ODC: root weights of the columns l of the half spectrum, d_l = sqrt(Σ̃_ll / mean), where
// Σ̃ = conj(F_n) Σ F_n^T and Σ = E[x̄ x̄^T] of the (sign-flipped) input. A diagonal Σ has a constant
// Σ̃_ll, so without the full matrix all weights are one.
std::vector<float> spectral_column_weights(Index input_channels, const SecondMoments& moments,
                                           std::span<const float> input_signs);

// Seeded random signs: element j of a stream is +1 or -1 by the top bit of
// splitmix64(seed + golden * (2 j + stream + 1)); stream 0 = input channels, 1 = output channels.
std::vector<float> random_signs(std::uint64_t seed, int stream, Index count);

inline constexpr int kInputSignStream = 0;
inline constexpr int kOutputSignStream = 1;

}  // namespace llava_fa

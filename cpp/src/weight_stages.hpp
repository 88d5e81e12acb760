// Compression of a weight wherever it lies: what the pipeline of compress_matrix.cpp asks of the
// host's memory or of a device's (cuda/compression_pipeline.hpp).
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "llava_fa/packed_matrix.hpp"

namespace llava_fa {

class WeightStages {
 public:
  virtual ~WeightStages() = default;

  // As channel_energies() of the weight.
  virtual ChannelEnergies energies(std::span<const float> output_multiplier,
                                   std::span<const float> input_multiplier) = 0;
  // As feedback_filter(); solve() then finds codes under that filter.
  virtual void feed_back(const MatrixView& second_moment,
                         std::span<const float> input_multiplier) = 0;
  // As solve_joint() of the half spectrum of diag(output) W diag(input). Column weights or
  // feedback, not both.
  virtual JointSolution solve(std::span<const float> output_multiplier,
                              std::span<const float> input_multiplier, const JointOptions& options,
                              std::span<const float> column_weight) = 0;
};

// compress_matrix() of a weight (rows, cols), stage by stage.
CompressionResult compress_weight(WeightStages& stages, Index rows, Index cols,
                                  const CompressionOptions& options, const SecondMoments& moments);

// What is known of a compressed matrix before its weight is: not yet whether channels have scales.
MatrixSpec spec_of(Index rows, Index cols, const CompressionOptions& options);

// What holds of options whatever the matrix. Throws Error(invalid_argument).
void validate(const JointOptions& options);

// Whether a weight with these options and moments is coded under error feedback.
bool codes_with_feedback(const CompressionOptions& options, const SecondMoments& moments);

// The first row whose energy says that it has a NaN or infinite entry.
std::optional<Index> non_finite_row(const ChannelEnergies& energies);

// Throws Error(non_finite) naming the first NaN or infinite entry of a row that has one.
[[noreturn]] void report_non_finite(Index row, std::span<const float> entries);

// Enlarges a row's scale until its codes carry as much of the row as there is of it
// (JointOptions::unbiased): energy is <x, x>, carried is <x, q> at the scale.
std::uint16_t unbiased_scale(std::uint16_t row_scale, double energy, double carried);

}  // namespace llava_fa

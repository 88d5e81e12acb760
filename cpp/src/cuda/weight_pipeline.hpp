// A dense weight in device memory, times multipliers of its channels: their energies and the half
// spectrum as sequences of kernels. Twin of channel_energies() in ../calibration.cpp.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "../weight_stages.hpp"
#include "spectrum_pipeline.hpp"

namespace llava_fa::cuda {

template <class Queue>
class WeightPipeline {
 public:
  // Multipliers may be empty: ones.
  WeightPipeline(const CompressionPlan& plan, const CompressionPlan::Layout& layout,
                 const WorkMemory<Queue>& memory, const Weight& weight,
                 std::span<const float> output_multiplier, std::span<const float> input_multiplier)
      : plan_(plan),
        layout_(layout),
        memory_(memory),
        weight_{weight.data,
                weight.type,
                plan.rows(),
                plan.cols(),
                weight.row_stride,
                memory.upload_or_ones(output_multiplier, layout.row_multiplier, plan.rows()),
                memory.upload_or_ones(input_multiplier, layout.col_multiplier, plan.cols())} {}

  // Throws Error(non_finite) naming an entry that is not finite.
  ChannelEnergies energies() {
    const RowEnergies rows = {weight_, memory_.template at<double>(layout_.row_energies)};
    const ColumnEnergies cols = {weight_, memory_.template at<double>(layout_.col_energies)};
    memory_.queue().launch(rows, plan_.rows(), 1, rows.shared_bytes());
    memory_.queue().launch(cols, cols.blocks(), 1, cols.shared_bytes());
    ChannelEnergies energies{memory_.download(rows.energies, plan_.rows()),
                             memory_.download(cols.energies, plan_.cols())};
    if (const std::optional<Index> row = non_finite_row(energies)) report_row(*row);
    return energies;
  }

  // To (plan.half_rows(), plan.cols()).
  void transform(Complex* spectrum) {
    SpectrumPipeline<Queue>(plan_, layout_, memory_)
        .transform(weight_, plan_.column_transform(), spectrum);
  }

 private:
  [[noreturn]] void report_row(Index row) {
    const Index item = item_bytes(weight_.type);
    std::vector<std::byte> bytes(static_cast<std::size_t>(plan_.cols() * item));
    memory_.queue().download(
        static_cast<const std::byte*>(weight_.values) + row * weight_.row_stride * item, bytes);
    std::vector<float> entries;
    for (Index j = 0; j < plan_.cols(); ++j) {
      entries.push_back(load_number(bytes.data(), weight_.type, j));
    }
    report_non_finite(row, entries);
  }

  const CompressionPlan& plan_;
  const CompressionPlan::Layout& layout_;
  const WorkMemory<Queue>& memory_;
  ScaledWeight weight_;
};

}  // namespace llava_fa::cuda

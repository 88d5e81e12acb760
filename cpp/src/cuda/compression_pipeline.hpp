// A weight in device memory to a packed matrix, as sequences of kernels: its channels' energies
// here, all else in the pipelines of its stages. Twin of the stages in ../compress_matrix.cpp.
#pragma once

#include "../weight_stages.hpp"
#include "filter_pipeline.hpp"
#include "joint_pipeline.hpp"
#include "spectrum_pipeline.hpp"

namespace llava_fa::cuda {

template <class Queue>
class CompressionPipeline final : public WeightStages {
 public:
  // The weight is (plan.rows(), plan.cols()); the workspace has room for plan.layout(fed_back).
  CompressionPipeline(const CompressionPlan& plan, bool fed_back, const Weight& weight,
                      void* workspace, Queue& queue)
      : plan_(plan), layout_(plan.layout(fed_back)), weight_(weight), memory_(workspace, queue) {
    memory_.upload(plan.constants(), layout_.constants);
  }

  ChannelEnergies energies(std::span<const float> output_multiplier,
                           std::span<const float> input_multiplier) override {
    const ScaledWeight weight = scaled(output_multiplier, input_multiplier);
    const RowEnergies rows = {weight, memory_.template at<double>(layout_.row_energies)};
    const ColumnEnergies cols = {weight, memory_.template at<double>(layout_.col_energies)};
    memory_.queue().launch(rows, plan_.rows(), 1, rows.shared_bytes());
    memory_.queue().launch(cols, cols.blocks(), 1, cols.shared_bytes());
    ChannelEnergies energies{memory_.download(rows.energies, plan_.rows()),
                             memory_.download(cols.energies, plan_.cols())};
    if (const std::optional<Index> row = non_finite_row(energies)) report_row(*row);
    return energies;
  }

  void feed_back(const MatrixView& second_moment,
                 std::span<const float> input_multiplier) override {
    FilterPipeline<Queue> stages(plan_, layout_, memory_);
    find_filter(stages, second_moment, input_multiplier);
    fed_back_ = true;
  }

  JointSolution solve(std::span<const float> output_multiplier,
                      std::span<const float> input_multiplier, const JointOptions& options,
                      std::span<const float> column_weight) override {
    SpectrumPipeline<Queue>(plan_, layout_, memory_)
        .transform(scaled(output_multiplier, input_multiplier), plan_.column_transform(),
                   memory_.template at<Complex>(layout_.spectrum));
    JointPipeline<Queue> stages(plan_, layout_, memory_, options, column_weight, fed_back_);
    return alternate(stages, options, column_weight);
  }

 private:
  // Copies to a place, ones if there are none.
  const float* uploaded(std::span<const float> values, Index place, Index count) {
    const std::vector<float> ones(values.empty() ? static_cast<std::size_t>(count) : 0, 1.0f);
    return memory_.upload(values.empty() ? std::span(ones) : values, place);
  }

  ScaledWeight scaled(std::span<const float> output_multiplier,
                      std::span<const float> input_multiplier) {
    return {weight_.data,
            weight_.type,
            plan_.rows(),
            plan_.cols(),
            weight_.row_stride,
            uploaded(output_multiplier, layout_.row_multiplier, plan_.rows()),
            uploaded(input_multiplier, layout_.col_multiplier, plan_.cols())};
  }

  [[noreturn]] void report_row(Index row) {
    const Index item = item_bytes(weight_.type);
    std::vector<std::byte> bytes(static_cast<std::size_t>(plan_.cols() * item));
    memory_.queue().download(
        static_cast<const std::byte*>(weight_.data) + row * weight_.row_stride * item, bytes);
    std::vector<float> entries;
    for (Index j = 0; j < plan_.cols(); ++j) {
      entries.push_back(load_number(bytes.data(), weight_.type, j));
    }
    report_non_finite(row, entries);
  }

  const CompressionPlan& plan_;
  CompressionPlan::Layout layout_;
  Weight weight_;
  WorkMemory<Queue> memory_;
  bool fed_back_ = false;  // so far
};

}  // namespace llava_fa::cuda

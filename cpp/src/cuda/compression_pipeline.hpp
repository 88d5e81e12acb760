// A weight in device memory to a packed matrix, by the pipelines of its stages. Twin of the stages
// in ../compress_matrix.cpp.
#pragma once

#include "filter_pipeline.hpp"
#include "joint_pipeline.hpp"
#include "weight_pipeline.hpp"

namespace llava_fa::cuda {

template <class Queue>
class CompressionPipeline : public WeightStages {
 public:
  // The weight is (plan.rows(), plan.cols()); the workspace has room for plan.layout(fed_back).
  CompressionPipeline(const CompressionPlan& plan, bool fed_back, const Weight& weight,
                      void* workspace, Queue& queue)
      : plan_(plan), layout_(plan.layout(fed_back)), weight_(weight), memory_(workspace, queue) {
    memory_.upload(plan.constants(), layout_.constants);
  }

  ChannelEnergies energies(std::span<const float> output_multiplier,
                           std::span<const float> input_multiplier) override {
    return weight(output_multiplier, input_multiplier).energies();
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
    weight(output_multiplier, input_multiplier)
        .transform(memory_.template at<Complex>(layout_.spectrum));
    JointPipeline<Queue> stages(plan_, layout_, memory_, options, column_weight, fed_back_);
    return alternate(stages, options, column_weight);
  }

 private:
  WeightPipeline<Queue> weight(std::span<const float> output_multiplier,
                               std::span<const float> input_multiplier) {
    return {plan_, layout_, memory_, weight_, output_multiplier, input_multiplier};
  }

  const CompressionPlan& plan_;
  CompressionPlan::Layout layout_;
  Weight weight_;
  WorkMemory<Queue> memory_;
  bool fed_back_ = false;  // so far
};

}  // namespace llava_fa::cuda

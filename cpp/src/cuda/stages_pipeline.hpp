// The stages between a weight and its codes in device memory, one at a time, each by the pipeline
// that a compression has for it; and packed matrices decoded. Twin of ../polar_codec.cpp and of
// decoding in ../packed_matrix.cpp.
#pragma once

#include "../device_backend.hpp"
#include "encoding_pipeline.hpp"
#include "subspace_pipeline.hpp"
#include "weight_pipeline.hpp"

namespace llava_fa::cuda {

template <class Queue>
class StagesPipeline : public StageByStage {
 public:
  // The workspace has room for the layout: plan.decoding_layout() for dense(), else
  // plan.stage_layout().
  StagesPipeline(const CompressionPlan& plan, const CompressionPlan::Layout& layout,
                 void* workspace, Queue& queue)
      : plan_(plan), layout_(layout), memory_(workspace, queue) {
    memory_.upload(plan.constants(), layout_.constants);
  }

  ChannelEnergies energies(const Weight& weight) override {
    return WeightPipeline<Queue>(plan_, layout_, memory_, weight, {}, {}).energies();
  }

  void half_spectrum(const Weight& weight, void* spectrum) override {
    WeightPipeline<Queue>(plan_, layout_, memory_, weight, {}, {})
        .transform(static_cast<Complex*>(spectrum));
    memory_.queue().wait();
  }

  void inverse_half_spectrum(const void* spectrum, float* weight) override {
    transform_back(static_cast<const Complex*>(spectrum), {}, {}, weight);
  }

  TruncatedSvd truncated_svd(const void* matrix, const SvdOptions& options,
                             const ComplexMatrix* warm_start) override {
    return SubspacePipeline<Queue>(layout_.subspace, memory_)
        .decompose({static_cast<const Complex*>(matrix), plan_.half_rows(), plan_.cols()}, options,
                   warm_start);
  }

  PolarCodes encode(const void* values) override {
    EncodingPipeline<Queue> encoding = coding();
    PolarCodes codes = encoding.packed(encoding.encode(
        static_cast<const Complex*>(values), memory_.template at<std::uint16_t>(layout_.points)));
    require_finite_scales(codes.row_scale);
    return codes;
  }

  void decode(const void* codes, std::span<const std::uint16_t> row_scale, void* values) override {
    coding().decode(codes, row_scale, static_cast<Complex*>(values));
    memory_.queue().wait();
  }

  void dense(const PackedMatrix& matrix, const void* codes, float* weight) override {
    Complex* const spectrum = memory_.template at<Complex>(layout_.spectrum);
    coding().decode(codes, matrix.row_scale(), spectrum);
    if (plan_.rank() > 0) add_low_rank(matrix, spectrum);
    transform_back(spectrum, matrix.output_multiplier(), matrix.input_multiplier(), weight);
  }

 private:
  EncodingPipeline<Queue> coding() { return {plan_, layout_, memory_, {}, {}, /*fed_back=*/false}; }

  void transform_back(const Complex* spectrum, std::span<const float> output_multiplier,
                      std::span<const float> input_multiplier, float* weight) {
    SpectrumPipeline<Queue>(plan_, layout_, memory_)
        .transform_back(
            spectrum,
            memory_.upload_or_ones(output_multiplier, layout_.row_multiplier, plan_.rows()),
            memory_.upload_or_ones(input_multiplier, layout_.col_multiplier, plan_.cols()), weight);
    memory_.queue().wait();
  }

  // spectrum -= L1ᵀ (-L2)
  void add_low_rank(const PackedMatrix& matrix, Complex* spectrum) {
    const ComplexMatrix left = matrix.low_rank_left();
    ComplexMatrix minus_right = matrix.low_rank_right();
    for (Index i = 0; i < 2 * minus_right.count(); ++i) minus_right.real()[i] *= -1.0f;
    memory_.multiply(SubtractLowRank{
        spectrum,
        {memory_.upload(left, layout_.left_factor), left.rows(), left.cols()},
        {memory_.upload(minus_right, layout_.right_factor), minus_right.rows(), minus_right.cols()},
        spectrum});
  }

  const CompressionPlan& plan_;
  CompressionPlan::Layout layout_;
  WorkMemory<Queue> memory_;
};

}  // namespace llava_fa::cuda

// The stages between a weight and its codes in device memory, one at a time, each by the pipeline
// that a compression has for it; and packed matrices decoded. Twin of ../polar_codec.cpp and of
// decoding in ../packed_matrix.cpp.
#pragma once

#include "../code_panels.hpp"
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
    EncodingPipeline<Queue> encoding(plan_, layout_, memory_, {}, {}, /*fed_back=*/false);
    PolarCodes codes = encoding.packed(
        encoding.encode(static_cast<const Complex*>(values), work<std::uint16_t>(layout_.points)));
    require_finite_scales(codes.row_scale);
    return codes;
  }

  void decode(const void* codes, std::span<const std::uint16_t> row_scale, void* values) override {
    decode_rows(codes, row_scale, static_cast<Complex*>(values));
    memory_.queue().wait();
  }

  void dense(const PackedMatrix& matrix, const void* codes, float* weight) override {
    Complex* const spectrum = work<Complex>(layout_.spectrum);
    decode_rows(codes, matrix.row_scale(), spectrum);
    if (plan_.rank() > 0) add_low_rank(matrix, spectrum);
    transform_back(spectrum, matrix.output_multiplier(), matrix.input_multiplier(), weight);
  }

 private:
  template <typename T>
  T* work(Index place) const {
    return memory_.template at<T>(place);
  }
  template <typename T>
  const T* constant(Index place) const {
    return constants_at<T>(work<std::byte>(layout_.constants), place);
  }

  void transform_back(const Complex* spectrum, std::span<const float> output_multiplier,
                      std::span<const float> input_multiplier, float* weight) {
    SpectrumPipeline<Queue>(plan_, layout_, memory_)
        .transform_back(
            spectrum,
            memory_.upload_or_ones(output_multiplier, layout_.row_multiplier, plan_.rows()),
            memory_.upload_or_ones(input_multiplier, layout_.col_multiplier, plan_.cols()), weight);
    memory_.queue().wait();
  }

  void decode_rows(const void* codes, std::span<const std::uint16_t> row_scale, Complex* values) {
    std::vector<float> scales;
    for (const std::uint16_t scale : row_scale) scales.push_back(half_to_float(scale));
    const CodedRows matrix = {static_cast<const std::uint8_t*>(codes),
                              memory_.upload(std::span<const float>(scales), layout_.row_scale),
                              plan_.half_rows(),
                              plan_.cols(),
                              packed_row_bytes(plan_.cols(), plan_.code_bits()),
                              plan_.code_bits()};
    const bool is_trellis = plan_.codec() == Codec::trellis;
    const DecodeRows kernel = {
        matrix, constant<Complex>(plan_.places().table),
        is_trellis ? constant<std::uint8_t>(plan_.places().code_of_stored) : nullptr,
        plan_.state_bits(), values};
    memory_.queue().launch(kernel, plan_.half_rows(), 1, 0);
  }

  // spectrum -= L1ᵀ (-L2)
  void add_low_rank(const PackedMatrix& matrix, Complex* spectrum) {
    const ComplexMatrix left = matrix.low_rank_left(), right = matrix.low_rank_right();
    ComplexMatrix minus_right(right.rows(), right.cols());
    for (Index i = 0; i < right.count(); ++i) {
      minus_right.real()[i] = -right.real()[i];
      minus_right.imag()[i] = -right.imag()[i];
    }
    memory_.multiply(SubtractLowRank{
        spectrum,
        {memory_.upload(left, layout_.left_factor), left.rows(), left.cols()},
        {memory_.upload(minus_right, layout_.right_factor), right.rows(), right.cols()},
        spectrum});
  }

  const CompressionPlan& plan_;
  CompressionPlan::Layout layout_;
  WorkMemory<Queue> memory_;
};

}  // namespace llava_fa::cuda

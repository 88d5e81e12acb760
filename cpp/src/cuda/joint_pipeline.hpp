// Joint low rank and codes of a spectrum in device memory. Twin of the stages in
// ../joint_solver.cpp.
#pragma once

#include <utility>

#include "../joint_stages.hpp"
#include "../weight_stages.hpp"
#include "encoding_pipeline.hpp"
#include "subspace_pipeline.hpp"

namespace llava_fa::cuda {

template <class Queue>
class JointPipeline final : public JointStages {
 public:
  // Of the spectrum at its place.
  JointPipeline(const CompressionPlan& plan, const CompressionPlan::Layout& layout,
                const WorkMemory<Queue>& memory, const JointOptions& options,
                std::span<const float> column_weight, bool fed_back)
      : plan_(plan),
        layout_(layout),
        memory_(memory),
        encoding_(plan, layout, memory, options, column_weight, fed_back) {
    if (!column_weight.empty()) {
      column_weight_ = memory_.upload(column_weight, layout.column_weight);
    }
  }

  double energy() override {
    if (encoding_.filter().empty()) return squares(spectrum());
    subtract_codes(spectrum(), nullptr, nullptr);  // a copy
    return weighted_squares(residual());
  }

  TruncatedSvd decompose(const SvdOptions& options, const ComplexMatrix* warm_start) override {
    subtract_codes(spectrum(), kept_.points, column_weight_);
    apply_filter(residual());
    return SubspacePipeline<Queue>(layout_.subspace, memory_)
        .decompose(rest(), options, warm_start);
  }

  std::optional<ComplexMatrix> project(const ComplexMatrix& left_vectors) override {
    if (encoding_.filter().empty()) return std::nullopt;
    subtract_codes(spectrum(), kept_.points, nullptr);
    return SubspacePipeline<Queue>(layout_.subspace, memory_).project(rest(), left_vectors);
  }

  CodingCost encode(const Factors& factors) override {
    std::uint16_t* const first = work<std::uint16_t>(layout_.points);
    std::uint16_t* const other = work<std::uint16_t>(layout_.other_points);
    found_ = encoding_.encode(without(factors), kept_.points == first ? other : first);
    require_finite_scales(found_.row_scale);
    return found_.cost;
  }

  void keep() override {
    kept_ = std::move(found_);
    if (plan_.rank() == 0) return;  // nothing is ever subtracted from
    std::vector<float> scales;
    for (const std::uint16_t scale : kept_.row_scale) scales.push_back(half_to_float(scale));
    memory_.upload(std::span<const float>(scales), layout_.row_scale);
  }

  double error(const Factors& factors) override {
    const Complex* const rest = without(factors);
    if (encoding_.filter().empty()) return error_of_codes(rest);
    subtract_codes(rest, kept_.points, nullptr);
    return weighted_squares(residual());
  }

  PolarCodes codes(const Factors& factors, bool unbiased) override {
    if (unbiased && encoding_.filter().empty()) unbias(factors);
    return encoding_.packed(kept_);
  }

 private:
  template <typename T>
  T* work(Index place) const {
    return memory_.template at<T>(place);
  }
  const Complex* spectrum() const { return work<Complex>(layout_.spectrum); }
  Complex* residual() const { return work<Complex>(layout_.residual); }
  BoundedMatrix rest() const { return {residual(), plan_.half_rows(), plan_.cols()}; }

  // Ã - L.
  const Complex* without(const Factors& factors) {
    if (factors.empty()) return spectrum();
    const ComplexMatrix &left = factors.left.decoded, &right = factors.right.decoded;
    const SubtractLowRank kernel = {
        spectrum(),
        {memory_.upload(left, layout_.left_factor), left.rows(), left.cols()},
        {memory_.upload(right, layout_.right_factor), right.rows(), right.cols()},
        residual()};
    memory_.multiply(kernel);
    return residual();
  }

  // residual = (from - the points kept) times the factor.
  void subtract_codes(const Complex* from, const std::uint16_t* points, const float* factor) {
    const SubtractCodes kernel = {
        from,         points,    work<float>(layout_.row_scale), encoding_.table(), factor,
        plan_.cols(), residual()};
    memory_.queue().launch(kernel, plan_.half_rows(), 1, 0);
  }

  // values = values R.
  void apply_filter(Complex* values) {
    const std::vector<FilterBlock>& filter = encoding_.filter();
    for (auto block = filter.rbegin(); block != filter.rend(); ++block) {
      memory_.multiply(ApplyFilter{values, plan_.half_rows(), plan_.cols(), *block});
    }
  }

  // What errors cost under the filter; they are weighted in place.
  double weighted_squares(Complex* errors) {
    apply_filter(errors);
    return squares(errors);
  }

  // With the squared column weights, if there are any.
  double squares(const Complex* values) {
    double total = 0;
    for (const RowSum& sum : encoding_.row_sums(values, nullptr)) total += sum.energy;
    return total;
  }

  double error_of_codes(const Complex* target) {
    const std::vector<RowSum> sums = encoding_.row_sums(target, kept_.points);
    double total = 0;
    for (std::size_t k = 0; k < sums.size(); ++k) {
      total += encoding_.error_at(sums[k], half_to_float(kept_.row_scale[k]));
    }
    return total;
  }

  void unbias(const Factors& factors) {
    const std::vector<RowSum> sums = encoding_.row_sums(without(factors), kept_.points);
    for (std::size_t k = 0; k < sums.size(); ++k) {
      std::uint16_t& scale = kept_.row_scale[k];
      scale = unbiased_scale(scale, sums[k].energy, half_to_float(scale) * sums[k].cross);
    }
  }

  const CompressionPlan& plan_;
  const CompressionPlan::Layout& layout_;
  const WorkMemory<Queue>& memory_;
  EncodingPipeline<Queue> encoding_;
  EncodedPoints found_, kept_;
  const float* column_weight_ = nullptr;
};

}  // namespace llava_fa::cuda

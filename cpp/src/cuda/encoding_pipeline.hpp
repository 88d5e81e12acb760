// Codes of a spectrum in device memory as a sequence of kernels, with error feedback or without,
// and codes decoded. Twin of ../code_book.cpp.
#pragma once

#include <algorithm>
#include <cmath>

#include "../half_float.hpp"
#include "../joint_stages.hpp"
#include "../polar_codec_internal.hpp"
#include "compression_plan.hpp"
#include "work_memory.hpp"

namespace llava_fa::cuda {

// Points as they are on the device, the row scales that they are stored with, and their cost.
struct EncodedPoints {
  const std::uint16_t* points = nullptr;  // (half rows, cols)
  std::vector<std::uint16_t> row_scale;
  CodingCost cost;
};

template <class Queue>
class EncodingPipeline {
 public:
  // Under feedback the filter is at its place.
  EncodingPipeline(const CompressionPlan& plan, const CompressionPlan::Layout& layout,
                   const WorkMemory<Queue>& memory, const JointOptions& options,
                   std::span<const float> column_weight, bool fed_back)
      : plan_(plan), layout_(layout), memory_(memory), unbiased_(options.unbiased) {
    if (fed_back) {
      find_blocks();
      gain_ = feedback_gain(plan.half_rows(), plan.code_book());
    }
    if (!column_weight.empty()) {
      std::vector<float> squares(column_weight.begin(), column_weight.end());
      for (float& d : squares) d *= d;
      squared_weight_ = memory_.upload(std::span<const float>(squares), layout.squared_weight);
    }
  }

  // The filter's blocks from the first to the last; none without feedback.
  const std::vector<FilterBlock>& filter() const { return filter_; }
  const Complex* table() const { return constant<Complex>(plan_.places().table); }

  // Finds points of target (half rows, cols) and writes them.
  EncodedPoints encode(const Complex* target, std::uint16_t* points) {
    if (!filter_.empty()) {
      feed_back(target, points);
      return costs_under_feedback(points);
    }
    choose_points(target, points);
    return costs(target, points);
  }

  // Of target and points, or of target alone.
  std::vector<RowSum> row_sums(const Complex* target, const std::uint16_t* points) {
    const RowSums kernel = {target,  points,          plan_.cols(),
                            table(), squared_weight_, work<RowSum>(layout_.sums)};
    memory_.queue().launch(kernel, plan_.half_rows(), 1, kernel.shared_bytes());
    return memory_.download(kernel.sums, plan_.half_rows());
  }

  // Codes as they are stored.
  PolarCodes packed(const EncodedPoints& encoded) {
    const bool is_trellis = plan_.codec() == Codec::trellis;
    const PackRows kernel = {
        encoded.points,
        plan_.half_rows(),
        plan_.cols(),
        plan_.code_bits(),
        is_trellis ? constant<std::uint8_t>(plan_.places().stored_code) : nullptr,
        work<std::uint8_t>(layout_.packed)};
    memory_.queue().launch(kernel, plan_.half_rows(), 1, 0);
    return {plan_.half_rows(), plan_.cols(), plan_.code_bits(),
            memory_.download(kernel.packed, plan_.packed_bytes()), encoded.row_scale};
  }

  // Codes as they are stored, in device memory, and binary16 row scales to values (half rows,
  // cols). In a layout that has room for the scales: of single stages, or of decoding.
  void decode(const void* codes, std::span<const std::uint16_t> row_scale, Complex* values) {
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
        matrix, table(),
        is_trellis ? constant<std::uint8_t>(plan_.places().code_of_stored) : nullptr,
        plan_.state_bits(), values};
    memory_.queue().launch(kernel, plan_.half_rows(), 1, 0);
  }

  // What is left of a row's energy when its points are decoded with a scale.
  static double error_at(const RowSum& sum, double scale) {
    return std::max(sum.energy - 2 * scale * sum.cross + scale * scale * sum.power, 0.0);
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
  float* sizes() const { return work<float>(layout_.sizes); }

  void find_blocks() {
    const float* const blocks = work<float>(layout_.filter);
    const Index n = plan_.cols();
    for (Index first = 0; first < n; first += kFilterBlock) {
      filter_.push_back({blocks + FeedbackFilter::block_offset(first / kFilterBlock),
                         work<float>(layout_.diagonal), first,
                         static_cast<int>(std::min<Index>(kFilterBlock, n - first))});
    }
  }

  void find_sizes(const Complex* target, float gain) {
    const RowSize kind =
        plan_.codec() == Codec::uniform ? RowSize::largest : RowSize::root_mean_square;
    const RowSizes kernel = {target, plan_.cols(), kind, gain, sizes()};
    memory_.queue().launch(kernel, plan_.half_rows(), 1, kernel.shared_bytes());
  }

  // Sizes rounded or not, as the CPU's encoders have them.
  void choose_points(const Complex* target, std::uint16_t* points) {
    find_sizes(target, plan_.codec() == Codec::trellis ? 1.0f : 0.0f);
    if (plan_.codec() != Codec::trellis) {
      const NearestPoints kernel = {nearest(), target, plan_.cols(), sizes(), points};
      memory_.queue().launch(kernel, plan_.half_rows(), 1, 0);
    } else if (plan_.searches_in_shared(/*fed_back=*/false)) {
      search<true>(target, points);
    } else {
      search<false>(target, points);
    }
  }

  NearestPoint nearest() const {
    return {constant<Ring>(plan_.places().rings), plan_.ring_count(),
            constant<std::uint16_t>(plan_.places().point_code)};
  }

  template <bool in_shared>
  PathSearch<in_shared> path() const {
    const SearchMemory memory = {work<std::uint8_t>(layout_.ways),
                                 PathSearch<in_shared>::most_steps(plan_.half_rows()),
                                 work<float>(layout_.costs)};
    return {plan_.search_order(), constant<Complex>(plan_.places().search_table), memory};
  }

  template <bool in_shared>
  void search(const Complex* target, std::uint16_t* points) {
    const TrellisSearch<in_shared> kernel = {path<in_shared>(), target,  plan_.half_rows(),
                                             plan_.cols(),      sizes(), points};
    memory_.queue().launch(kernel, plan_.search_blocks(/*fed_back=*/false), 1,
                           kernel.path.shared_bytes(plan_.search_order()));
  }

  void feed_back(const Complex* target, std::uint16_t* points) {
    find_sizes(target, gain_);
    for (const FilterBlock& block : filter_) {
      find_targets(target, block);
      if (plan_.codec() != Codec::trellis) {
        encode_block(NearestChooser{nearest()}, target, block, points);
      } else if (plan_.searches_in_shared(/*fed_back=*/true)) {
        encode_block(PathChooser<true>{path<true>()}, target, block, points);
      } else {
        encode_block(PathChooser<false>{path<false>()}, target, block, points);
      }
    }
  }

  void find_targets(const Complex* target, const FilterBlock& block) {
    const FeedbackTargets kernel = {
        target, work<Complex>(layout_.errors), plan_.half_rows(), plan_.cols(),
        block,  work<Complex>(layout_.targets)};
    memory_.multiply(kernel);
  }

  template <class Chooser>
  void encode_block(const Chooser& chooser, const Complex* target, const FilterBlock& block,
                    std::uint16_t* points) {
    const EncodeBlock<Chooser> kernel = {chooser,
                                         table(),
                                         target,
                                         plan_.half_rows(),
                                         plan_.cols(),
                                         sizes(),
                                         gain_,
                                         block,
                                         work<Complex>(layout_.targets),
                                         work<Complex>(layout_.errors),
                                         points,
                                         work<FedBackSum>(layout_.fed_back_sums)};
    memory_.queue().launch(kernel, Chooser::blocks(plan_.half_rows()), 1,
                           kernel.shared_bytes(chooser.shared_bytes()));
  }

  // The scale becomes rho times itself, and cost = energy - 2 rho cross + rho^2 power.
  EncodedPoints costs_under_feedback(const std::uint16_t* points) {
    EncodedPoints encoded{points, {}, {}};
    const auto sums = memory_.download(work<FedBackSum>(layout_.fed_back_sums), plan_.half_rows());
    const auto sizes = memory_.download(this->sizes(), plan_.half_rows());
    for (std::size_t k = 0; k < sums.size(); ++k) {
      const FedBackSum& sum = sums[k];
      const double scale = RowSizes::decode_scale(sizes[k], gain_);
      const double best = unbiased_ ? 1.0 : least_squares_scale(sum);
      const std::uint16_t stored = float_to_half(static_cast<float>(best * scale));
      const double rho = scale > 0 ? half_to_float(stored) / scale : 0.0;
      const double change = (rho - 1.0) * ((rho + 1.0) * sum.power - 2.0 * sum.cross);
      encoded.cost.error += scale > 0 ? std::max(sum.cost + change, 0.0) : sum.energy;
      encoded.cost.energy += sum.energy;
      encoded.row_scale.push_back(stored);
    }
    return encoded;
  }

  // Scales by least squares of what points make of the rows.
  EncodedPoints costs(const Complex* target, const std::uint16_t* points) {
    EncodedPoints encoded{points, {}, {}};
    for (const RowSum& sum : row_sums(target, points)) {
      const std::uint16_t stored = float_to_half(static_cast<float>(least_squares_scale(sum)));
      encoded.cost.error += error_at(sum, half_to_float(stored));
      encoded.cost.energy += sum.energy;
      encoded.row_scale.push_back(stored);
    }
    return encoded;
  }

  template <class Sum>
  static double least_squares_scale(const Sum& sum) {
    return sum.power > 0 ? std::max(sum.cross / sum.power, 0.0) : 0.0;
  }

  const CompressionPlan& plan_;
  const CompressionPlan::Layout& layout_;
  const WorkMemory<Queue>& memory_;
  bool unbiased_;
  std::vector<FilterBlock> filter_;
  float gain_ = 1.0f;  // of codes under feedback
  const float* squared_weight_ = nullptr;
};

}  // namespace llava_fa::cuda

// The stages of a compression as sequences of kernels, on a weight in device memory. Twin of the
// stages' calls in ../compress_matrix.cpp.
//
// A Queue runs what it is given in order: launch(kernel, grid_x, grid_y, shared_bytes),
// upload(to, bytes), which returns when the bytes have been read, and download(from, bytes), which
// waits for all that was queued before.
#pragma once

#include <algorithm>
#include <cmath>

#include "../half_float.hpp"
#include "../polar_codec_internal.hpp"
#include "../weight_stages.hpp"
#include "compression_plan.hpp"
#include "half_spectrum.hpp"

namespace llava_fa::cuda {

template <class Queue>
class CompressionPipeline final : public WeightStages {
 public:
  // The weight is (plan.rows(), plan.cols()); the workspace has room for plan.layout(fed_back).
  CompressionPipeline(const CompressionPlan& plan, bool fed_back, const Weight& weight,
                      void* workspace, Queue& queue)
      : plan_(plan),
        layout_(plan.layout(fed_back)),
        weight_(weight),
        workspace_(static_cast<std::byte*>(workspace)),
        queue_(queue) {
    queue_.upload(work<std::byte>(layout_.constants), plan.constants());
  }

  ChannelEnergies energies(std::span<const float> output_multiplier,
                           std::span<const float> input_multiplier) override {
    const ScaledWeight weight = scaled(output_multiplier, input_multiplier);
    const RowEnergies rows = {weight, work<double>(layout_.row_energies)};
    const ColumnEnergies cols = {weight, work<double>(layout_.col_energies)};
    queue_.launch(rows, plan_.rows(), 1, rows.shared_bytes());
    queue_.launch(cols, cols.blocks(), 1, cols.shared_bytes());
    ChannelEnergies energies{downloaded<double>(layout_.row_energies, plan_.rows()),
                             downloaded<double>(layout_.col_energies, plan_.cols())};
    if (const std::optional<Index> row = non_finite_row(energies)) report_row(*row);
    return energies;
  }

  JointSolution solve(std::span<const float> output_multiplier,
                      std::span<const float> input_multiplier, const JointOptions& options,
                      const JointWeight& weight) override {
    transform_weight(scaled(output_multiplier, input_multiplier));
    if (weight.filter != nullptr) {
      feed_back(*weight.filter);
      return finished_under_feedback(options);
    }
    choose_points();
    return finished(options, weight);
  }

 private:
  template <typename T>
  T* work(Index place) const {
    return reinterpret_cast<T*>(workspace_ + place);
  }
  const std::byte* constants() const { return work<std::byte>(layout_.constants); }
  template <typename T>
  const T* constant(Index place) const {
    return constants_at<T>(constants(), place);
  }

  template <typename T>
  std::vector<T> downloaded(Index place, Index count) {
    std::vector<T> out(static_cast<std::size_t>(count));
    queue_.download(work<T>(place), std::as_writable_bytes(std::span(out)));
    return out;
  }

  // Copies to a place, ones if there are none.
  const float* uploaded(std::span<const float> values, Index place, Index count) {
    const std::vector<float> ones(values.empty() ? static_cast<std::size_t>(count) : 0, 1.0f);
    queue_.upload(work<std::byte>(place), std::as_bytes(values.empty() ? std::span(ones) : values));
    return work<float>(place);
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
    queue_.download(static_cast<const std::byte*>(weight_.data) + row * weight_.row_stride * item,
                    bytes);
    std::vector<float> entries;
    for (Index j = 0; j < plan_.cols(); ++j) {
      entries.push_back(load_number(bytes.data(), weight_.type, j));
    }
    report_non_finite(row, entries);
  }

  // Buffers, grid and shared memory of the kernels that transform.
  template <class Kernel>
  void launch_transform(Kernel kernel, Index elements, Index sequences) {
    const Index shared = shared_bytes_of_transform(elements, plan_.shared_limit());
    kernel.buffers = {shared > 0 ? nullptr : work<Complex>(layout_.transforms), elements};
    queue_.launch(kernel, shared > 0 ? sequences : std::min(sequences, kTransformBlocks), 1,
                  shared);
  }

  Complex* spectrum() const { return work<Complex>(layout_.spectrum); }
  float* sizes() const { return work<float>(layout_.sizes); }
  std::uint16_t* points() const { return work<std::uint16_t>(layout_.points); }

  void transform_weight(const ScaledWeight& weight) {
    const Index rows = plan_.half_rows(), cols = plan_.cols();
    const ColumnSpectra columns = {
        plan_.column_transform().at(constants()), {}, weight, spectrum()};
    launch_transform(columns, plan_.column_transform().buffer_elements(), cols);
    if (cols == 1) return;
    const float unitary = static_cast<float>(1.0 / std::sqrt(static_cast<double>(cols)));
    const RowSpectra lines = {plan_.row_transform().at(constants()), {}, spectrum(), rows, unitary};
    launch_transform(lines, plan_.row_transform().buffer_elements(), rows);
  }

  void find_sizes(float gain) {
    const RowSize kind =
        plan_.codec() == Codec::uniform ? RowSize::largest : RowSize::root_mean_square;
    const RowSizes kernel = {spectrum(), plan_.cols(), kind, gain, sizes()};
    queue_.launch(kernel, plan_.half_rows(), 1, kernel.shared_bytes());
  }

  // Sizes rounded or not, as the CPU's encoders have them.
  void choose_points() {
    find_sizes(plan_.codec() == Codec::trellis ? 1.0f : 0.0f);
    if (plan_.codec() != Codec::trellis) {
      find_nearest();
    } else if (plan_.searches_in_shared(/*fed_back=*/false)) {
      search<true>();
    } else {
      search<false>();
    }
  }

  NearestPoint nearest() const {
    return {constant<Ring>(plan_.places().rings), plan_.ring_count(),
            constant<std::uint16_t>(plan_.places().point_code)};
  }

  void find_nearest() {
    const NearestPoints kernel = {nearest(), spectrum(), plan_.cols(), sizes(), points()};
    queue_.launch(kernel, plan_.half_rows(), 1, 0);
  }

  template <bool in_shared>
  PathSearch<in_shared> path() const {
    const SearchMemory memory = {work<std::uint8_t>(layout_.ways),
                                 PathSearch<in_shared>::most_steps(plan_.half_rows()),
                                 work<float>(layout_.costs)};
    return {plan_.search_order(), constant<Complex>(plan_.places().search_table), memory};
  }

  template <bool in_shared>
  void search() {
    const TrellisSearch<in_shared> kernel = {path<in_shared>(), spectrum(), plan_.half_rows(),
                                             plan_.cols(),      sizes(),    points()};
    queue_.launch(kernel, plan_.search_blocks(/*fed_back=*/false), 1,
                  kernel.path.shared_bytes(plan_.search_order()));
  }

  void feed_back(const FeedbackFilter& filter) {
    queue_.upload(
        work<std::byte>(layout_.filter),
        std::as_bytes(std::span(filter.blocks.data(), FeedbackFilter::floats(filter.size))));
    queue_.upload(work<std::byte>(layout_.diagonal), std::as_bytes(std::span(filter.diagonal)));
    gain_ = feedback_gain(plan_.half_rows(), plan_.code_book());
    find_sizes(gain_);
    for (Index b = 0; b < filter.block_count(); ++b) {
      const FilterBlock block = {work<float>(layout_.filter) + FeedbackFilter::block_offset(b),
                                 work<float>(layout_.diagonal), b * FeedbackFilter::kBlock,
                                 static_cast<int>(filter.block_width(b))};
      find_targets(block);
      if (plan_.codec() != Codec::trellis) {
        encode_block(NearestChooser{nearest()}, block);
      } else if (plan_.searches_in_shared(/*fed_back=*/true)) {
        encode_block(PathChooser<true>{path<true>()}, block);
      } else {
        encode_block(PathChooser<false>{path<false>()}, block);
      }
    }
  }

  void find_targets(const FilterBlock& block) {
    const FeedbackTargets kernel = {
        spectrum(), work<Complex>(layout_.errors), plan_.half_rows(), plan_.cols(),
        block,      work<Complex>(layout_.targets)};
    queue_.launch(kernel, kernel.tiles(), 2, kernel.shared_bytes());
  }

  template <class Chooser>
  void encode_block(const Chooser& chooser, const FilterBlock& block) {
    const EncodeBlock<Chooser> kernel = {chooser,
                                         constant<Complex>(plan_.places().table),
                                         spectrum(),
                                         plan_.half_rows(),
                                         plan_.cols(),
                                         sizes(),
                                         gain_,
                                         block,
                                         work<Complex>(layout_.targets),
                                         work<Complex>(layout_.errors),
                                         points(),
                                         work<FedBackSum>(layout_.fed_back_sums)};
    queue_.launch(kernel, Chooser::blocks(plan_.half_rows()), 1,
                  kernel.shared_bytes(chooser.shared_bytes()));
  }

  JointSolution packed_solution() {
    pack();
    JointSolution solution;
    solution.codes = {plan_.half_rows(),
                      plan_.cols(),
                      plan_.code_bits(),
                      downloaded<std::uint8_t>(layout_.packed, plan_.packed_bytes()),
                      {}};
    return solution;
  }

  static JointSolution judged(JointSolution&& solution, double error, double energy) {
    require_finite_scales(solution.codes);
    solution.objective.push_back(energy > 0 ? error / energy : 0.0);
    return std::move(solution);
  }

  // The scale becomes rho times itself, and cost = energy - 2 rho cross + rho^2 power.
  JointSolution finished_under_feedback(const JointOptions& options) {
    JointSolution solution = packed_solution();
    const auto sums = downloaded<FedBackSum>(layout_.fed_back_sums, plan_.half_rows());
    const auto sizes = downloaded<float>(layout_.sizes, plan_.half_rows());
    double error = 0, energy = 0;
    for (std::size_t k = 0; k < sums.size(); ++k) {
      const FedBackSum& sum = sums[k];
      const double scale = RowSizes::decode_scale(sizes[k], gain_);
      const bool refit = !options.unbiased;
      const double best = !refit ? 1.0 : sum.power > 0 ? std::max(sum.cross / sum.power, 0.0) : 0.0;
      const std::uint16_t stored = float_to_half(static_cast<float>(best * scale));
      const double rho = scale > 0 ? half_to_float(stored) / scale : 0.0;
      const double change = (rho - 1.0) * ((rho + 1.0) * sum.power - 2.0 * sum.cross);
      error += scale > 0 ? std::max(sum.cost + change, 0.0) : sum.energy;
      energy += sum.energy;
      solution.codes.row_scale.push_back(stored);
    }
    return judged(std::move(solution), error, energy);
  }

  // Codes as they are stored, and the scales by least squares of what points make of the rows.
  JointSolution finished(const JointOptions& options, const JointWeight& weight) {
    JointSolution solution = packed_solution();
    double error = 0, energy = 0;
    for (const RowSum& sum : row_sums(weight)) {
      const double best = sum.power > 0 ? std::max(sum.cross / sum.power, 0.0) : 0.0;
      const std::uint16_t stored = float_to_half(static_cast<float>(best));
      const double scale = half_to_float(stored), carried = scale * sum.cross;
      energy += sum.energy;
      error += std::max(sum.energy - 2 * carried + scale * scale * sum.power, 0.0);
      solution.codes.row_scale.push_back(
          options.unbiased ? unbiased_scale(stored, sum.energy, carried) : stored);
    }
    return judged(std::move(solution), error, energy);
  }

  void pack() {
    const bool is_trellis = plan_.codec() == Codec::trellis;
    const PackRows kernel = {
        points(),
        plan_.half_rows(),
        plan_.cols(),
        plan_.code_bits(),
        is_trellis ? constant<std::uint8_t>(plan_.places().stored_code) : nullptr,
        work<std::uint8_t>(layout_.packed)};
    queue_.launch(kernel, plan_.half_rows(), 1, 0);
  }

  std::vector<RowSum> row_sums(const JointWeight& weight) {
    const float* column_weight = nullptr;
    if (!weight.column.empty()) {
      std::vector<float> squares(weight.column.begin(), weight.column.end());
      for (float& d : squares) d *= d;
      column_weight = uploaded(squares, layout_.column_weight, plan_.cols());
    }
    const RowSums kernel = {spectrum(),    points(),
                            plan_.cols(),  constant<Complex>(plan_.places().table),
                            column_weight, work<RowSum>(layout_.sums)};
    queue_.launch(kernel, plan_.half_rows(), 1, kernel.shared_bytes());
    return downloaded<RowSum>(layout_.sums, plan_.half_rows());
  }

  const CompressionPlan& plan_;
  CompressionPlan::Layout layout_;
  Weight weight_;
  std::byte* workspace_;
  Queue& queue_;
  float gain_ = 1.0f;  // of codes under feedback
};

}  // namespace llava_fa::cuda

// The stages of a compression as sequences of kernels, on a weight in device memory. Twin of the
// stages' calls in ../compress_matrix.cpp.
//
// A Queue runs what it is given in order: launch(kernel, grid_x, grid_y, shared_bytes),
// upload(to, bytes), and download(from, bytes), which waits for all that was queued before.
#pragma once

#include <algorithm>
#include <array>
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
  // The weight is (plan.rows(), plan.cols()).
  CompressionPipeline(const CompressionPlan& plan, const Weight& weight, void* workspace,
                      Queue& queue)
      : plan_(plan),
        weight_(weight),
        workspace_(static_cast<std::byte*>(workspace)),
        queue_(queue) {
    queue_.upload(work<std::byte>(plan.layout().constants), plan.constants());
  }

  ChannelEnergies energies(std::span<const float> output_multiplier,
                           std::span<const float> input_multiplier) override {
    const ScaledWeight weight = scaled(output_multiplier, input_multiplier);
    const RowEnergies rows = {weight, work<double>(plan_.layout().row_energies)};
    const ColumnEnergies cols = {weight, work<double>(plan_.layout().col_energies)};
    queue_.launch(rows, plan_.rows(), 1, rows.shared_bytes());
    queue_.launch(cols, cols.blocks(), 1, cols.shared_bytes());
    ChannelEnergies energies{downloaded<double>(plan_.layout().row_energies, plan_.rows()),
                             downloaded<double>(plan_.layout().col_energies, plan_.cols())};
    if (const std::optional<Index> row = non_finite_row(energies)) report_row(*row);
    return energies;
  }

  JointSolution solve(std::span<const float> output_multiplier,
                      std::span<const float> input_multiplier, const JointOptions& options,
                      const JointWeight& weight) override {
    transform_weight(scaled(output_multiplier, input_multiplier));
    choose_points();
    return finished(options, weight);
  }

 private:
  template <typename T>
  T* work(Index place) const {
    return reinterpret_cast<T*>(workspace_ + place);
  }
  const std::byte* constants() const { return work<std::byte>(plan_.layout().constants); }
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
            uploaded(output_multiplier, plan_.layout().row_multiplier, plan_.rows()),
            uploaded(input_multiplier, plan_.layout().col_multiplier, plan_.cols())};
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
    kernel.buffers = {shared > 0 ? nullptr : work<Complex>(plan_.layout().transforms), elements};
    queue_.launch(kernel, shared > 0 ? sequences : std::min(sequences, kTransformBlocks), 1,
                  shared);
  }

  Complex* spectrum() const { return work<Complex>(plan_.layout().spectrum); }
  float* sizes() const { return work<float>(plan_.layout().sizes); }
  std::uint16_t* points() const { return work<std::uint16_t>(plan_.layout().points); }

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

  // As the CPU's encoders have it.
  RowSize row_size() const {
    if (plan_.codec() == Codec::trellis) return RowSize::rounded_root_mean_square;
    return plan_.codec() == Codec::uniform ? RowSize::largest : RowSize::root_mean_square;
  }

  void choose_points() {
    const RowSizes kernel = {spectrum(), plan_.cols(), row_size(), sizes()};
    queue_.launch(kernel, plan_.half_rows(), 1, kernel.shared_bytes());
    if (plan_.codec() != Codec::trellis) {
      find_nearest();
    } else if (plan_.searches_in_shared()) {
      search<true>();
    } else {
      search<false>();
    }
  }

  void find_nearest() {
    const NearestPoints kernel = {spectrum(),
                                  plan_.cols(),
                                  sizes(),
                                  constant<Ring>(plan_.places().rings),
                                  plan_.ring_count(),
                                  constant<std::uint16_t>(plan_.places().point_code),
                                  points()};
    queue_.launch(kernel, plan_.half_rows(), 1, 0);
  }

  template <bool in_shared>
  void search() {
    using Kernel = TrellisSearch<in_shared>;
    const Kernel kernel = {
        plan_.search_order(),
        constant<Complex>(plan_.places().search_table),
        spectrum(),
        plan_.half_rows(),
        plan_.cols(),
        sizes(),
        {work<std::uint8_t>(plan_.layout().ways), Kernel::most_steps(plan_.half_rows()),
         work<float>(plan_.layout().costs)},
        points()};
    queue_.launch(kernel, plan_.search_blocks(), 1, Kernel::shared_bytes(plan_.search_order()));
  }

  // Codes as they are stored, and the scales by least squares of what points make of the rows.
  JointSolution finished(const JointOptions& options, const JointWeight& weight) {
    const Index rows = plan_.half_rows();
    pack();
    const std::vector<RowSum> sums = row_sums(weight);
    JointSolution solution;
    solution.codes = {rows,
                      plan_.cols(),
                      plan_.code_bits(),
                      downloaded<std::uint8_t>(plan_.layout().packed, plan_.packed_bytes()),
                      {}};
    double error = 0, energy = 0;
    for (const RowSum& sum : sums) {
      const double best = sum.power > 0 ? std::max(sum.cross / sum.power, 0.0) : 0.0;
      const std::uint16_t stored = float_to_half(static_cast<float>(best));
      const double scale = half_to_float(stored), carried = scale * sum.cross;
      energy += sum.energy;
      error += std::max(sum.energy - 2 * carried + scale * scale * sum.power, 0.0);
      solution.codes.row_scale.push_back(
          options.unbiased ? unbiased_scale(stored, sum.energy, carried) : stored);
    }
    require_finite_scales(solution.codes);
    solution.objective.push_back(energy > 0 ? error / energy : 0.0);
    return solution;
  }

  void pack() {
    const bool is_trellis = plan_.codec() == Codec::trellis;
    const PackRows kernel = {
        points(),
        plan_.half_rows(),
        plan_.cols(),
        plan_.code_bits(),
        is_trellis ? constant<std::uint8_t>(plan_.places().stored_code) : nullptr,
        work<std::uint8_t>(plan_.layout().packed)};
    queue_.launch(kernel, plan_.half_rows(), 1, 0);
  }

  std::vector<RowSum> row_sums(const JointWeight& weight) {
    const float* column_weight = nullptr;
    if (!weight.column.empty()) {
      std::vector<float> squares(weight.column.begin(), weight.column.end());
      for (float& d : squares) d *= d;
      column_weight = uploaded(squares, plan_.layout().column_weight, plan_.cols());
    }
    const RowSums kernel = {spectrum(),    points(),
                            plan_.cols(),  constant<Complex>(plan_.places().table),
                            column_weight, work<RowSum>(plan_.layout().sums)};
    queue_.launch(kernel, plan_.half_rows(), 1, kernel.shared_bytes());
    return downloaded<RowSum>(plan_.layout().sums, plan_.half_rows());
  }

  const CompressionPlan& plan_;
  Weight weight_;
  std::byte* workspace_;
  Queue& queue_;
};

}  // namespace llava_fa::cuda

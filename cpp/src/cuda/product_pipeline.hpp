// The product as a sequence of kernels. Twin of ../matmul.cpp.
//
// 1. Activations to spectra.
// 2. Up to kMostVectors: spectra times codes. More: spectra to float16, and panel after panel,
//    codes to float16 and both multiplied.
// 3. The low-rank part, as a further part of the result.
// 4. Parts to outputs.
//
// A Launcher queues one kernel: launch(kernel, grid_x, grid_y, shared_bytes).
#pragma once

#include <algorithm>

#include "folding.hpp"
#include "low_rank.hpp"
#include "panel_product.hpp"
#include "point_product.hpp"
#include "product_plan.hpp"
#include "spectrum.hpp"

namespace llava_fa::cuda {

template <class Launcher>
class ProductPipeline {
 public:
  ProductPipeline(const ProductPlan& plan, const DeviceMemory& memory, Precision precision,
                  const Launcher& launcher)
      : plan_(plan),
        constants_(static_cast<const std::byte*>(memory.constants)),
        workspace_(static_cast<std::byte*>(memory.workspace)),
        precision_(precision),
        launcher_(launcher) {
    const MatrixSpec& spec = plan.spec();
    matrix_ = {static_cast<const std::uint8_t*>(memory.codes),
               constant<float>(plan.places().row_scale),
               plan.half_rows(),
               spec.cols,
               packed_row_bytes(spec.cols, spec.code_bits),
               spec.code_bits};
  }

  void multiply(const Activations& activations, const Output& output) {
    const Index item = item_bytes(output.type), x_item = item_bytes(activations.type);
    for (Index first = 0; first < activations.rows; first += kMostAtOnce) {
      Activations share = activations;
      share.rows = std::min(kMostAtOnce, activations.rows - first);
      share.data =
          static_cast<const std::byte*>(activations.data) + first * activations.row_stride * x_item;
      const Output out = {static_cast<std::byte*>(output.data) + first * plan_.spec().rows * item,
                          output.type};
      multiply_share(share, out);
    }
  }

 private:
  template <typename T>
  const T* constant(Index place) const {
    return constants_at<T>(constants_, place);
  }
  template <typename T>
  T* work(Index place) const {
    return reinterpret_cast<T*>(workspace_ + place);
  }
  const void* points() const { return constant<void>(plan_.places().points); }

  void multiply_share(const Activations& activations, const Output& output) {
    tokens_ = activations.rows;
    layout_ = plan_.layout(tokens_, precision_);
    to_spectra(activations);
    if (tokens_ <= kMostVectors) {
      multiply_vectors();
    } else {
      multiply_panels();
    }
    if (plan_.spec().rank > 0) add_low_rank();
    to_outputs(output);
  }

  // Buffers, grid and shared memory of the kernels that transform.
  template <class Kernel>
  void launch_transform(const RealFftTables& tables, Kernel kernel) {
    const Index shared = plan_.shared_bytes(tables);
    kernel.plan = tables.at(constants_);
    kernel.buffers = {shared > 0 ? nullptr : work<Complex>(layout_.transforms),
                      tables.buffer_elements()};
    const Index blocks = shared > 0 ? tokens_ : std::min(tokens_, kTransformBlocks);
    launcher_.launch(kernel, blocks, 1, shared);
  }

  void to_spectra(const Activations& activations) {
    SpectrumKernel kernel = {};
    kernel.activations = activations.data;
    kernel.type = activations.type;
    kernel.row_stride = activations.row_stride;
    kernel.multiplier = constant<float>(plan_.places().input_multiplier);
    kernel.spectrum = work<Complex>(layout_.spectrum);
    kernel.pitch = plan_.pitch();
    kernel.tokens = tokens_;
    kernel.trellis = plan_.is_trellis();
    launch_transform(plan_.input_transform(), kernel);
  }

  void to_outputs(const Output& output) {
    InverseSpectrumKernel kernel = {};
    kernel.parts = work<float>(layout_.parts);
    kernel.part_count = layout_.part_count;
    kernel.tokens = tokens_;
    kernel.multiplier = constant<float>(plan_.places().output_multiplier);
    kernel.output = output.data;
    kernel.type = output.type;
    launch_transform(plan_.output_transform(), kernel);
  }

  void multiply_vectors() {
    if (plan_.is_trellis()) {
      launch_point_product<TrellisTable, kMinCodeBits, kMaxTrellisCodeBits>();
    } else {
      launch_point_product<ConstellationTable, kMinCodeBits, kMaxCodeBits>();
    }
  }

  // The kernel of the matrix' code width, from code_bits on.
  template <class Table, int code_bits, int most_bits>
  void launch_point_product() {
    if (plan_.spec().code_bits == code_bits) {
      const PointProduct<Table, code_bits> kernel = {
          matrix_,       points(), plan_.state_rows(),        work<Complex>(layout_.spectrum),
          plan_.pitch(), tokens_,  work<float>(layout_.parts)};
      launcher_.launch(kernel, kernel.panels() * product_parts(matrix_.cols), tokens_,
                       kernel.shared_bytes());
    } else if constexpr (code_bits < most_bits) {
      launch_point_product<Table, code_bits + 1, most_bits>();
    }
  }

  void multiply_panels() {
    const Index half = half_pitch(matrix_.cols);
    const FoldedFactor activations = {work<Half>(layout_.halves), tokens_, half,
                                      planes_of(precision_)};
    const FoldActivations fold = {work<Complex>(layout_.spectrum),
                                  plan_.pitch(),
                                  matrix_.cols,
                                  plan_.is_trellis(),
                                  activations,
                                  work<float>(layout_.units)};
    launcher_.launch(fold, tokens_, 1, fold.shared_bytes());
    for (Index first = 0; first < matrix_.rows; first += kPanelRowsAtOnce) {
      const Index count = std::min(kPanelRowsAtOnce, matrix_.rows - first);
      const FoldedFactor panel = {work<Half>(layout_.panel), 2 * count, half,
                                  planes_of(precision_)};
      if (plan_.is_trellis()) {
        launch_decode<TrellisTable>(first, count, panel);
      } else {
        launch_decode<ConstellationTable>(first, count, panel);
      }
      if (precision_ == Precision::single) {
        launch_panel_product<2>(first, count, panel, activations);
      } else {
        launch_panel_product<1>(first, count, panel, activations);
      }
    }
  }

  template <class Table>
  void launch_decode(Index first, Index count, const FoldedFactor& panel) {
    const DecodePanels<Table> kernel = {matrix_, points(), plan_.state_rows(), first, count, panel};
    launcher_.launch(kernel, kernel.blocks(), 1, kernel.shared_bytes());
  }

  template <int planes>
  void launch_panel_product(Index first, Index count, const FoldedFactor& panel,
                            const FoldedFactor& activations) {
    using Kernel = PanelProduct<planes>;
    const Kernel kernel = {panel.values,
                           activations.values,
                           count,
                           tokens_,
                           2 * panel.half_pitch,
                           matrix_.row_scale + first,
                           work<float>(layout_.units),
                           work<float>(layout_.parts) + first,
                           matrix_.rows};
    const auto tiles = [](Index extent, Index tile) { return (extent + tile - 1) / tile; };
    launcher_.launch(kernel, tiles(2 * count, Kernel::kRows), tiles(tokens_, Kernel::kTokens),
                     kernel.shared_bytes());
  }

  void add_low_rank() {
    const Index rank = plan_.spec().rank, rows = matrix_.rows;
    const LowRankInner inner = {constant<Complex>(plan_.places().right), matrix_.cols,
                                work<Complex>(layout_.spectrum), plan_.pitch(),
                                work<Complex>(layout_.inner)};
    launcher_.launch(inner, rank, tokens_, inner.shared_bytes());
    const Index part = layout_.part_count - 1;
    const LowRankOuter outer = {constant<Complex>(plan_.places().left), rank, rows, inner.inner,
                                work<float>(layout_.parts) + part * tokens_ * 2 * rows};
    launcher_.launch(outer, (rows + outer.kThreads - 1) / outer.kThreads, tokens_, 0);
  }

  const ProductPlan& plan_;
  const std::byte* constants_;
  std::byte* workspace_;
  Precision precision_;
  const Launcher& launcher_;
  CodedRows matrix_ = {};
  Index tokens_ = 0;
  WorkspaceLayout layout_;
};

}  // namespace llava_fa::cuda

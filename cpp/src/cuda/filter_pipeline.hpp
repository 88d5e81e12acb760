// A second moment to the filter of error feedback in device memory, as a sequence of kernels. Twin
// of the stages in ../feedback.cpp.
#pragma once

#include <algorithm>

#include "../filter_stages.hpp"
#include "spectrum_pipeline.hpp"

namespace llava_fa::cuda {

template <class Queue>
class FilterPipeline final : public FilterStages {
 public:
  FilterPipeline(const CompressionPlan& plan, const CompressionPlan::Layout& layout,
                 const WorkMemory<Queue>& memory)
      : plan_(plan), layout_(layout), memory_(memory) {}

  // The moment, whose rows follow each other, lies where the filter will, of which it takes no
  // more.
  void transform(const MatrixView& second_moment, std::span<const float> multiplier) override {
    const Index n = plan_.cols();
    const std::span<const float> entries(second_moment.data, static_cast<std::size_t>(n * n));
    const float* const factors = memory_.upload(multiplier, layout_.col_multiplier);
    const ScaledWeight moment = {
        memory_.upload(entries, layout_.filter), ElementType::float32, n, n, n, factors, factors};
    SpectrumPipeline<Queue>(plan_, layout_, memory_)
        .transform(moment, plan_.moment_transform(), work<Complex>(layout_.moment_spectrum));
  }

  bool factor(double damping) override {
    const Index n = plan_.cols();
    const AssembleMoment assemble = {work<Complex>(layout_.moment_spectrum), n,
                                     static_cast<float>(damping), work<Complex>(layout_.factor),
                                     work<int>(layout_.factor_failed)};
    memory_.queue().launch(assemble, n, 1, 0);
    for (Index first = 0; first < n; first += kFilterBlock) {
      factor_columns(first, static_cast<int>(std::min<Index>(kFilterBlock, n - first)));
    }
    if (memory_.download(assemble.failed, 1)[0] != 0) return false;
    const FillFilter fill = {assemble.factor, n, work<float>(layout_.filter),
                             work<float>(layout_.diagonal)};
    memory_.queue().launch(fill, n, ceil_div(n, kFilterBlock), 0);
    return true;
  }

  void set_identity(Index size) override {
    const std::vector<float> zeros(static_cast<std::size_t>(FeedbackFilter::floats(size)));
    const std::vector<float> ones(static_cast<std::size_t>(size), 1.0f);
    memory_.upload(std::span<const float>(zeros), layout_.filter);
    memory_.upload(std::span<const float>(ones), layout_.diagonal);
  }

 private:
  template <typename T>
  T* work(Index place) const {
    return memory_.template at<T>(place);
  }

  // The tile on the diagonal, those below it, and everything to the right of these.
  void factor_columns(Index first, int width) {
    const Index n = plan_.cols(), below = n - first - width;
    Complex* const factor = work<Complex>(layout_.factor);
    Complex* const inverse = work<Complex>(layout_.factor_inverse);
    const FactorTile tile = {factor + first * n + first, width, n, inverse,
                             work<int>(layout_.factor_failed)};
    memory_.queue().launch(tile, 1, 1, tile.shared_bytes());
    if (below == 0) return;
    Complex* const panel = factor + (first + width) * n + first;
    memory_.multiply(Multiply{{panel, below, width, n}, {inverse, width, width}, panel, n});
    memory_.multiply(UpdateTrailing{factor, n, first, width});
  }

  const CompressionPlan& plan_;
  const CompressionPlan::Layout& layout_;
  const WorkMemory<Queue>& memory_;
};

}  // namespace llava_fa::cuda

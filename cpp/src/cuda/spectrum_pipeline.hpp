// The half spectrum of a matrix in device memory as a sequence of kernels. Twin of ../spectrum.cpp.
#pragma once

#include <algorithm>
#include <cmath>

#include "compression_plan.hpp"
#include "half_spectrum.hpp"
#include "work_memory.hpp"

namespace llava_fa::cuda {

template <class Queue>
class SpectrumPipeline {
 public:
  SpectrumPipeline(const CompressionPlan& plan, const CompressionPlan::Layout& layout,
                   const WorkMemory<Queue>& memory)
      : plan_(plan), layout_(layout), memory_(memory) {}

  // Of a matrix (rows, plan.cols()), with the tables of its columns' transforms, to
  // (rows / 2 + 1, plan.cols()).
  void transform(const ScaledWeight& matrix, const RealFftTables& columns, Complex* spectrum) {
    const std::byte* const constants = memory_.template at<std::byte>(layout_.constants);
    const Index rows = half_rows(matrix.rows), cols = matrix.cols;
    launch(ColumnSpectra{columns.at(constants), {}, matrix, spectrum}, columns.buffer_elements(),
           cols);
    if (cols == 1) return;
    const FftTables& lines = plan_.row_transform();
    const float unitary = static_cast<float>(1.0 / std::sqrt(static_cast<double>(cols)));
    launch(RowSpectra{lines.at(constants), {}, spectrum, rows, unitary}, lines.buffer_elements(),
           rows);
  }

 private:
  // Buffers, grid and shared memory of the kernels that transform.
  template <class Kernel>
  void launch(Kernel kernel, Index elements, Index sequences) {
    const Index shared = shared_bytes_of_transform(elements, plan_.shared_limit());
    kernel.buffers = {shared > 0 ? nullptr : memory_.template at<Complex>(layout_.transforms),
                      elements};
    memory_.queue().launch(kernel, shared > 0 ? sequences : std::min(sequences, kTransformBlocks),
                           1, shared);
  }

  const CompressionPlan& plan_;
  const CompressionPlan::Layout& layout_;
  const WorkMemory<Queue>& memory_;
};

}  // namespace llava_fa::cuda

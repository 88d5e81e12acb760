// The half spectrum of a matrix in device memory as a sequence of kernels, and the way back.
// Twin of ../spectrum.cpp.
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
    launch(ColumnSpectra{columns.at(constants()), {}, matrix, spectrum}, columns.buffer_elements(),
           matrix.cols);
    transform_rows(spectrum, spectrum, half_rows(matrix.rows), /*inverse=*/false);
  }

  // Inverse, to a weight (plan.rows(), plan.cols()) times the multipliers; the spectrum at its
  // place is overwritten, and may be the one that is given.
  void transform_back(const Complex* spectrum, const float* row_multiplier,
                      const float* col_multiplier, float* weight) {
    Complex* const columns = memory_.template at<Complex>(layout_.spectrum);
    transform_rows(spectrum, columns, plan_.half_rows(), /*inverse=*/true);
    const RealFftTables& tables = plan_.column_transform();
    launch(InverseColumnSpectra{tables.at(constants()),
                                {},
                                columns,
                                plan_.cols(),
                                row_multiplier,
                                col_multiplier,
                                weight},
           tables.buffer_elements(), plan_.cols());
  }

 private:
  const std::byte* constants() const { return memory_.template at<std::byte>(layout_.constants); }

  void transform_rows(const Complex* from, Complex* to, Index rows, bool inverse) {
    const Index cols = plan_.cols();
    if (cols == 1 && from == to) return;
    const FftTables& lines = plan_.row_transform();
    const float unitary = static_cast<float>(1.0 / std::sqrt(static_cast<double>(cols)));
    launch(RowSpectra{lines.at(constants()), {}, from, to, rows, unitary, inverse},
           lines.buffer_elements(), rows);
  }

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

// Bindings of llava_fa/calibration.hpp.
#include "llava_fa/calibration.hpp"

#include <nanobind/stl/optional.h>

#include "moments.hpp"
#include "results.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {

MomentArguments::MomentArguments(std::optional<AnyArray> input, std::optional<AnyArray> output) {
  if (input) {
    input_is_full_ = input->ndim() == 2;
    if (input_is_full_ && input->shape(0) != input->shape(1)) {
      throw nb::value_error(("input_second_moment has shape (" + std::to_string(input->shape(0)) +
                             ", " + std::to_string(input->shape(1)) +
                             "), expected a vector or a square matrix")
                                .c_str());
    }
    input_.emplace(std::move(*input), "input_second_moment", input_is_full_ ? 2 : 1);
  }
  if (output) output_.emplace(std::move(*output), "output_second_moment", 1);
  if (!input_is_full_) return;
  const MatrixView full = input_->matrix();
  for (Index j = 0; j < full.rows; ++j) input_diagonal_.push_back(full.row(j)[j]);
  if (full.row_stride == full.cols) return;
  for (Index j = 0; j < full.rows; ++j) {
    contiguous_.insert(contiguous_.end(), full.row(j), full.row(j) + full.cols);
  }
}

SecondMoments MomentArguments::view() const {
  SecondMoments moments;
  if (input_is_full_) {
    moments.input_diagonal = input_diagonal_;
    moments.input_full = contiguous_.empty() ? input_->vector() : std::span(contiguous_);
  } else if (input_) {
    moments.input_diagonal = input_->vector();
  }
  if (output_) moments.output_diagonal = output_->vector();
  return moments;
}

void bind_calibration(nb::module_& m) {
  m.def(
      "diagonal_scales",
      [](AnyArray weight, std::optional<AnyArray> input, std::optional<AnyArray> output) {
        const FloatArray dense(std::move(weight), "weight", 2);
        const MomentArguments moments(std::move(input), std::move(output));
        DiagonalScales scales;
        {
          nb::gil_scoped_release release;
          scales = diagonal_scales(channel_energies(dense.matrix()), moments.view());
        }
        return numpy_scales(scales);
      },
      nb::arg("weight"), nb::arg("input_second_moment") = nb::none(),
      nb::arg("output_second_moment") = nb::none());
  m.def(
      "random_signs",
      [](std::uint64_t seed, int stream, Index count) {
        if (count < 0) throw nb::value_error("count must not be negative");
        return numpy_copy<float>(random_signs(seed, stream, count),
                                 {static_cast<std::size_t>(count)});
      },
      nb::arg("seed"), nb::arg("stream"), nb::arg("count"));
}

}  // namespace llava_fa::bindings

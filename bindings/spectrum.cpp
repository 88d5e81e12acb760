// Bindings of llava_fa/spectrum.hpp.
#include "llava_fa/spectrum.hpp"

#include "arrays.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {

void bind_spectrum(nb::module_& m) {
  m.def(
      "half_spectrum",
      [](AnyArray weight) {
        const FloatArray dense(std::move(weight), "weight", 2);
        ComplexMatrix spectrum;
        {
          nb::gil_scoped_release release;
          spectrum = half_spectrum(dense.matrix());
        }
        return numpy_complex(spectrum);
      },
      nb::arg("weight"));
  m.def(
      "inverse_half_spectrum",
      [](AnyArray spectrum, Index output_channels) {
        ComplexMatrix planes = split_planes(spectrum, "spectrum");
        const Index cols = planes.cols();
        if (output_channels < 1 || half_rows(output_channels) != planes.rows()) {
          throw nb::value_error(("spectrum has " + std::to_string(planes.rows()) +
                                 " rows, which do not belong to " +
                                 std::to_string(output_channels) + " output channels")
                                    .c_str());
        }
        auto out = std::make_unique_for_overwrite<float[]>(
            static_cast<std::size_t>(output_channels * cols));
        {
          nb::gil_scoped_release release;
          inverse_half_spectrum(std::move(planes), output_channels, out.get());
        }
        return numpy_array(std::move(out), {static_cast<std::size_t>(output_channels),
                                            static_cast<std::size_t>(cols)});
      },
      nb::arg("spectrum"), nb::arg("output_channels"));
}

}  // namespace llava_fa::bindings

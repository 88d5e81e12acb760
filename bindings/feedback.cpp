// Bindings of llava_fa/feedback.hpp.
#include "llava_fa/feedback.hpp"

#include <nanobind/stl/optional.h>

#include "arrays.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {

void bind_feedback(nb::module_& m) {
  m.def(
      "fed_back_noise",
      [](AnyArray second_moment, std::optional<AnyArray> input_multiplier) {
        const FloatArray moment(std::move(second_moment), "second_moment", 2);
        std::optional<FloatArray> multiplier;
        if (input_multiplier) {
          multiplier.emplace(std::move(*input_multiplier), "input_multiplier", 1);
        }
        const std::span<const float> factors =
            multiplier ? multiplier->vector() : std::span<const float>{};
        FedBackNoise noise;
        {
          nb::gil_scoped_release release;
          noise = fed_back_noise(feedback_filter(moment.matrix(), factors));
        }
        return nb::make_tuple(noise.damped, noise.exact);
      },
      nb::arg("second_moment"), nb::arg("input_multiplier") = nb::none());
}

}  // namespace llava_fa::bindings

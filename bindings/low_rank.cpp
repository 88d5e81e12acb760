// Bindings of llava_fa/low_rank.hpp.
#include "llava_fa/low_rank.hpp"

#include <nanobind/stl/optional.h>

#include "results.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {

void bind_low_rank(nb::module_& m) {
  m.def("default_oversampling", &default_oversampling, nb::arg("rank"));
  m.def(
      "truncated_svd",
      [](AnyArray matrix, Index rank, int power_iterations, Index oversampling, std::uint64_t seed,
         bool exact, std::optional<AnyArray> warm_start) {
        const ComplexMatrix planes = split_planes(matrix, "matrix");
        ComplexMatrix start;
        if (warm_start) start = split_planes(*warm_start, "warm_start");
        TruncatedSvd svd;
        {
          nb::gil_scoped_release release;
          const SvdOptions options{rank, power_iterations, oversampling, seed};
          svd = exact ? exact_svd(planes, rank)
                      : randomized_svd(planes, options, warm_start ? &start : nullptr);
        }
        return numpy_svd(svd);
      },
      nb::arg("matrix"), nb::arg("rank"), nb::arg("power_iterations"), nb::arg("oversampling"),
      nb::arg("seed"), nb::arg("exact"), nb::arg("warm_start") = nb::none());
}

}  // namespace llava_fa::bindings

// One registration function per stage header.
#pragma once

#include <nanobind/nanobind.h>

namespace llava_fa::bindings {

void bind_spectrum(nanobind::module_& m);
void bind_low_rank(nanobind::module_& m);
void bind_polar_codec(nanobind::module_& m);
void bind_calibration(nanobind::module_& m);
void bind_feedback(nanobind::module_& m);
void bind_packed_matrix(nanobind::module_& m);
void bind_cuda(nanobind::module_& m);

}  // namespace llava_fa::bindings

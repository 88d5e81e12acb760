// The extension module llava_fa._core: runtime settings and the one conversion of C++ errors.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "llava_fa/error.hpp"
#include "llava_fa/runtime.hpp"
#include "stages.hpp"

namespace nb = nanobind;
using llava_fa::ErrorCode;

namespace {

// The Python class for an error: from llava_fa.errors, imported late because that module is Python.
nb::object exception_class(ErrorCode code) {
  const nb::module_ builtins = nb::module_::import_("builtins");
  if (code == ErrorCode::invalid_argument) return builtins.attr("ValueError");
  const nb::module_ errors = nb::module_::import_("llava_fa.errors");
  switch (code) {
    case ErrorCode::non_finite: return errors.attr("NonFiniteError");
    case ErrorCode::inconsistent_format: return errors.attr("FormatError");
    case ErrorCode::device: return errors.attr("DeviceError");
    default: return errors.attr("LlavaFaError");
  }
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "C++ core of llava_fa; use it through llava_fa.matrix and llava_fa.stages.";
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const llava_fa::Error& error) {
      PyErr_SetString(exception_class(error.code()).ptr(), error.what());
    }
  });
  m.def("set_num_threads", &llava_fa::set_num_threads, nb::arg("count"),
        "Threads used by every stage; 0 restores the default. Results do not depend on it.");
  m.def("num_threads", &llava_fa::num_threads);
  m.def("cpu_variant", &llava_fa::cpu_variant,
        "Instruction-set variant in use: x86-64-v4-gfni, x86-64-v4, x86-64-v3 or baseline.");
  m.def("version", &llava_fa::version);
  llava_fa::bindings::bind_spectrum(m);
  llava_fa::bindings::bind_low_rank(m);
  llava_fa::bindings::bind_polar_codec(m);
  llava_fa::bindings::bind_calibration(m);
  llava_fa::bindings::bind_feedback(m);
  llava_fa::bindings::bind_packed_matrix(m);
  llava_fa::bindings::bind_cuda(m);
}

// Bindings of llava_fa/cuda.hpp. Device memory comes as addresses: what exports CUDA tensors by
// DLPack may make the default stream wait, which no stream that is being captured allows.
#include "llava_fa/cuda.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "arrays.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {
namespace {

Precision precision_of(bool half) { return half ? Precision::half : Precision::single; }

void multiply_on_device(const cuda::Product& product, Address codes, Address constants,
                        Address workspace, Address activations, const std::string& activation_type,
                        Index count, Index row_stride, Address output,
                        const std::string& output_type, bool half, Address stream) {
  const auto pointer = [](Address address) { return reinterpret_cast<void*>(address); };
  const cuda::Activations x = {pointer(activations), element_type(activation_type), count,
                               row_stride};
  const cuda::Output y = {pointer(output), element_type(output_type)};
  const nb::gil_scoped_release release;
  product.multiply({pointer(codes), pointer(constants), pointer(workspace)}, x, y,
                   precision_of(half), pointer(stream));
}

}  // namespace

void bind_cuda(nb::module_& m) {
  m.def("cuda_unavailable_reason", &cuda::unavailable_reason,
        "Why products cannot run on GPUs here, and what to do about it; None if they can.");
  m.def("cuda_device_count", &cuda::device_count);
  nb::class_<cuda::Product>(m, "DeviceProduct")
      .def(nb::init<const PackedMatrix&, int>(), nb::arg("matrix"), nb::arg("device"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("constants",
           [](const cuda::Product& product) {
             const std::span<const std::byte> bytes = product.constants();
             return numpy_bytes(bytes, "uint8", {bytes.size()});
           })
      .def(
          "workspace_bytes",
          [](const cuda::Product& product, Index activations, bool half) {
            return product.workspace_bytes(activations, precision_of(half));
          },
          nb::arg("activations"), nb::arg("half"))
      .def("multiply", &multiply_on_device, nb::kw_only(), nb::arg("codes"), nb::arg("constants"),
           nb::arg("workspace"), nb::arg("activations"), nb::arg("activation_type"),
           nb::arg("count"), nb::arg("row_stride"), nb::arg("output"), nb::arg("output_type"),
           nb::arg("half"), nb::arg("stream"),
           "Queues the product on a stream; addresses in the device's memory.");
}

}  // namespace llava_fa::bindings

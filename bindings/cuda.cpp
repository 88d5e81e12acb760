// Bindings of llava_fa/cuda.hpp. Device memory comes as addresses: what exports CUDA tensors by
// DLPack may make the default stream wait, which no stream that is being captured allows.
#include "llava_fa/cuda.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "moments.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {
namespace {

Precision precision_of(bool half) { return half ? Precision::half : Precision::single; }

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

nb::tuple compress_on_device(const cuda::Compressor& compressor, Address weight,
                             const std::string& weight_type, Index row_stride, Address workspace,
                             Index workspace_bytes, Address stream,
                             std::optional<AnyArray> input_second_moment,
                             std::optional<AnyArray> output_second_moment) {
  const cuda::Weight dense = {pointer(weight), element_type(weight_type), row_stride};
  const MomentArguments moments(std::move(input_second_moment), std::move(output_second_moment));
  CompressionResult result;
  {
    const nb::gil_scoped_release release;
    result = compressor.compress(dense, moments.view(), {pointer(workspace), workspace_bytes},
                                 pointer(stream));
  }
  return nb::make_tuple(std::move(result.matrix), std::move(result.objective));
}

void multiply_on_device(const cuda::Product& product, Address codes, Address constants,
                        Address workspace, Address activations, const std::string& activation_type,
                        Index count, Index row_stride, Address output,
                        const std::string& output_type, bool half, Address stream) {
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
        "Why GPUs cannot be used here, and what to do about it; None if they can.");
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
  nb::class_<cuda::Compressor>(m, "DeviceCompressor")
      .def(nb::init<Index, Index, const CompressionOptions&, int>(), nb::arg("rows"),
           nb::arg("cols"), nb::arg("options"), nb::arg("device"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("workspace_bytes", &cuda::Compressor::workspace_bytes, nb::arg("full_moment"))
      .def("compress", &compress_on_device, nb::kw_only(), nb::arg("weight"),
           nb::arg("weight_type"), nb::arg("row_stride"), nb::arg("workspace"),
           nb::arg("workspace_bytes"), nb::arg("stream"),
           nb::arg("input_second_moment") = nb::none(),
           nb::arg("output_second_moment") = nb::none(),
           "Runs on a stream and waits for it; addresses in the device's memory, moments in the "
           "host's.");
}

}  // namespace llava_fa::bindings

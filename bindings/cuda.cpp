// Bindings of llava_fa/cuda.hpp. Device memory comes as addresses: what exports CUDA tensors by
// DLPack may make the default stream wait, which no stream that is being captured allows.
#include "llava_fa/cuda.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "moments.hpp"
#include "results.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {
namespace {

Precision precision_of(bool half) { return half ? Precision::half : Precision::single; }

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

cuda::Weight dense_weight(Address weight, const std::string& type, Index row_stride) {
  return {pointer(weight), element_type(type), row_stride};
}

nb::tuple compress_on_device(const cuda::Compressor& compressor, Address weight,
                             const std::string& weight_type, Index row_stride, Address workspace,
                             Index workspace_bytes, Address stream,
                             std::optional<AnyArray> input_second_moment,
                             std::optional<AnyArray> output_second_moment) {
  const cuda::Weight dense = dense_weight(weight, weight_type, row_stride);
  const MomentArguments moments(std::move(input_second_moment), std::move(output_second_moment));
  CompressionResult result;
  {
    const nb::gil_scoped_release release;
    result = compressor.compress(dense, moments.view(), {pointer(workspace), workspace_bytes},
                                 pointer(stream));
  }
  return nb::make_tuple(std::move(result.matrix), std::move(result.objective));
}

nb::tuple diagonal_scales_on_device(const cuda::Stages& stages, Address weight,
                                    const std::string& weight_type, Index row_stride,
                                    std::optional<AnyArray> input_second_moment,
                                    std::optional<AnyArray> output_second_moment, Address workspace,
                                    Index workspace_bytes, Address stream) {
  const cuda::Weight dense = dense_weight(weight, weight_type, row_stride);
  const MomentArguments moments(std::move(input_second_moment), std::move(output_second_moment));
  DiagonalScales scales;
  {
    const nb::gil_scoped_release release;
    scales = stages.diagonal_scales(dense, moments.view(), {pointer(workspace), workspace_bytes},
                                    pointer(stream));
  }
  return numpy_scales(scales);
}

void half_spectrum_on_device(const cuda::Stages& stages, Address weight,
                             const std::string& weight_type, Index row_stride, Address spectrum,
                             Address workspace, Index workspace_bytes, Address stream) {
  const cuda::Weight dense = dense_weight(weight, weight_type, row_stride);
  const nb::gil_scoped_release release;
  stages.half_spectrum(dense, pointer(spectrum), {pointer(workspace), workspace_bytes},
                       pointer(stream));
}

void inverse_half_spectrum_on_device(const cuda::Stages& stages, Address spectrum, Address weight,
                                     Address workspace, Index workspace_bytes, Address stream) {
  const nb::gil_scoped_release release;
  stages.inverse_half_spectrum(pointer(spectrum), static_cast<float*>(pointer(weight)),
                               {pointer(workspace), workspace_bytes}, pointer(stream));
}

nb::tuple truncated_svd_on_device(const cuda::Stages& stages, Address matrix, int power_iterations,
                                  std::uint64_t seed, std::optional<AnyArray> warm_start,
                                  Address workspace, Index workspace_bytes, Address stream) {
  ComplexMatrix start;
  if (warm_start) start = split_planes(*warm_start, "warm_start");
  TruncatedSvd svd;
  {
    const nb::gil_scoped_release release;
    svd =
        stages.truncated_svd(pointer(matrix), power_iterations, seed, warm_start ? &start : nullptr,
                             {pointer(workspace), workspace_bytes}, pointer(stream));
  }
  return numpy_svd(svd);
}

nb::tuple encode_on_device(const cuda::Stages& stages, Address values, Address workspace,
                           Index workspace_bytes, Address stream) {
  PolarCodes codes;
  {
    const nb::gil_scoped_release release;
    codes = stages.encode(pointer(values), {pointer(workspace), workspace_bytes}, pointer(stream));
  }
  return numpy_codes(codes);
}

void decode_on_device(
    const cuda::Stages& stages, Address codes,
    nb::ndarray<const std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> row_scale_bits,
    Address values, Address workspace, Index workspace_bytes, Address stream) {
  const std::span<const std::uint16_t> scales(row_scale_bits.data(), row_scale_bits.shape(0));
  const nb::gil_scoped_release release;
  stages.decode(pointer(codes), scales, pointer(values), {pointer(workspace), workspace_bytes},
                pointer(stream));
}

void dense_on_device(const cuda::Stages& stages, const PackedMatrix& matrix, Address codes,
                     Address weight, Address workspace, Index workspace_bytes, Address stream) {
  const nb::gil_scoped_release release;
  stages.dense(matrix, pointer(codes), static_cast<float*>(pointer(weight)),
               {pointer(workspace), workspace_bytes}, pointer(stream));
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

// Their functions run on a stream and wait for it; addresses are in the device's memory.
void bind_stages(nb::module_& m) {
  nb::class_<cuda::Stages>(m, "DeviceStages")
      .def(nb::init<Index, Index, const CompressionOptions&, Index, int>(), nb::arg("rows"),
           nb::arg("cols"), nb::arg("options"), nb::arg("oversampling"), nb::arg("device"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("workspace_bytes", &cuda::Stages::workspace_bytes)
      .def("dense_workspace_bytes", &cuda::Stages::dense_workspace_bytes)
      .def("diagonal_scales", &diagonal_scales_on_device, nb::kw_only(), nb::arg("weight"),
           nb::arg("weight_type"), nb::arg("row_stride"), nb::arg("input_second_moment").none(),
           nb::arg("output_second_moment").none(), nb::arg("workspace"), nb::arg("workspace_bytes"),
           nb::arg("stream"))
      .def("half_spectrum", &half_spectrum_on_device, nb::kw_only(), nb::arg("weight"),
           nb::arg("weight_type"), nb::arg("row_stride"), nb::arg("spectrum"), nb::arg("workspace"),
           nb::arg("workspace_bytes"), nb::arg("stream"))
      .def("inverse_half_spectrum", &inverse_half_spectrum_on_device, nb::kw_only(),
           nb::arg("spectrum"), nb::arg("weight"), nb::arg("workspace"), nb::arg("workspace_bytes"),
           nb::arg("stream"))
      .def("truncated_svd", &truncated_svd_on_device, nb::kw_only(), nb::arg("matrix"),
           nb::arg("power_iterations"), nb::arg("seed"), nb::arg("warm_start").none(),
           nb::arg("workspace"), nb::arg("workspace_bytes"), nb::arg("stream"))
      .def("encode", &encode_on_device, nb::kw_only(), nb::arg("values"), nb::arg("workspace"),
           nb::arg("workspace_bytes"), nb::arg("stream"))
      .def("decode", &decode_on_device, nb::kw_only(), nb::arg("codes"), nb::arg("row_scale_bits"),
           nb::arg("values"), nb::arg("workspace"), nb::arg("workspace_bytes"), nb::arg("stream"))
      .def("dense", &dense_on_device, nb::kw_only(), nb::arg("matrix"), nb::arg("codes"),
           nb::arg("weight"), nb::arg("workspace"), nb::arg("workspace_bytes"), nb::arg("stream"));
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
  bind_stages(m);
}

}  // namespace llava_fa::bindings

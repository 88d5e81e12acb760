// Bindings of llava_fa/packed_matrix.hpp and llava_fa/matmul.hpp.
#include "llava_fa/packed_matrix.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "llava_fa/matmul.hpp"
#include "llava_fa/spectrum.hpp"
#include "moments.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {
namespace {

const char* dtype_name(StoredType type) {
  switch (type) {
    case StoredType::uint8: return "uint8";
    case StoredType::int64: return "int64";
    case StoredType::float16: return "float16";
    default: return "float32";
  }
}

std::vector<std::size_t> shape_of(const TensorLayout& tensor) {
  return {tensor.shape.begin(), tensor.shape.end()};
}

nb::dict spec_to_dict(const MatrixSpec& spec) {
  nb::dict out;
  out["shape"] = nb::make_tuple(spec.rows, spec.cols);
  out["codec"] = std::string(codec_name(spec.codec));
  out["code_bits"] = spec.code_bits;
  out["rank"] = spec.rank;
  out["factor_bits"] = spec.factor_bits;
  out["signs"] = spec.signs;
  out["seed"] = spec.seed;
  out["channel_scale_in"] = spec.channel_scale_in;
  out["channel_scale_out"] = spec.channel_scale_out;
  out["state_bits"] = spec.state_bits;
  return out;
}

MatrixSpec spec_from_dict(const nb::dict& in) {
  MatrixSpec spec;
  const auto shape = nb::cast<nb::tuple>(in["shape"]);
  const auto is_index = [](nb::handle item) {
    return nb::isinstance<nb::int_>(item) && !nb::isinstance<nb::bool_>(item);
  };
  if (shape.size() != 2 || !is_index(shape[0]) || !is_index(shape[1])) {
    throw nb::value_error("shape of a matrix specification: expected two integers");
  }
  spec.rows = nb::cast<Index>(shape[0]);
  spec.cols = nb::cast<Index>(shape[1]);
  spec.codec = codec_from_name(nb::cast<std::string>(in["codec"]));
  spec.code_bits = nb::cast<int>(in["code_bits"]);
  spec.rank = nb::cast<Index>(in["rank"]);
  spec.factor_bits = nb::cast<int>(in["factor_bits"]);
  spec.signs = nb::cast<bool>(in["signs"]);
  spec.seed = nb::cast<std::uint64_t>(in["seed"]);
  spec.channel_scale_in = nb::cast<bool>(in["channel_scale_in"]);
  spec.channel_scale_out = nb::cast<bool>(in["channel_scale_out"]);
  spec.state_bits = nb::cast<int>(in["state_bits"]);
  validate(spec);
  return spec;
}

nb::list layout(const nb::dict& spec) {
  nb::list out;
  for (const TensorLayout& tensor : tensor_layout(spec_from_dict(spec))) {
    nb::list shape;
    for (const Index extent : tensor.shape) shape.append(extent);
    out.append(nb::make_tuple(tensor.name, dtype_name(tensor.type), nb::tuple(shape)));
  }
  return out;
}

using ByteArray = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

PackedMatrix from_tensors(const nb::dict& tensors, bool in_place) {
  std::vector<std::string> names;
  std::vector<ByteArray> arrays;
  std::vector<TensorView> views;
  names.reserve(tensors.size());
  for (const auto& [name, bytes] : tensors) {
    names.push_back(nb::cast<std::string>(name));
    arrays.push_back(nb::cast<ByteArray>(bytes));
    // The last copy of an array may go at any time; nanobind takes the interpreter's lock for that.
    auto owner = in_place ? std::make_shared<ByteArray>(arrays.back()) : nullptr;
    views.push_back({names.back(), reinterpret_cast<const std::byte*>(arrays.back().data()),
                     static_cast<Index>(arrays.back().size()), std::move(owner)});
  }
  nb::gil_scoped_release release;
  return PackedMatrix::from_tensors(views);
}

nb::dict tensors(const PackedMatrix& matrix) {
  nb::dict out;
  for (const TensorLayout& tensor : tensor_layout(matrix.spec())) {
    out[tensor.name.c_str()] =
        numpy_bytes(matrix.tensor(tensor.name), dtype_name(tensor.type), shape_of(tensor));
  }
  return out;
}

nb::object dense(const PackedMatrix& matrix) {
  const MatrixSpec& spec = matrix.spec();
  auto out =
      std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(spec.rows * spec.cols));
  {
    nb::gil_scoped_release release;
    matrix.decode(out.get());
  }
  return numpy_array(std::move(out),
                     {static_cast<std::size_t>(spec.rows), static_cast<std::size_t>(spec.cols)});
}

nb::object code_planes(const PackedMatrix& matrix) {
  const auto rows = static_cast<std::size_t>(half_rows(matrix.spec().rows));
  const auto cols = static_cast<std::size_t>(matrix.spec().cols);
  auto planes = std::make_unique_for_overwrite<float[]>(2 * rows * cols);
  {
    nb::gil_scoped_release release;
    matrix.decode_rows(0, half_rows(matrix.spec().rows), planes.get(), planes.get() + rows * cols);
  }
  return numpy_array(std::move(planes), {2, rows, cols});
}

nb::object multiply(const PackedMatrix& matrix, AnyArray activations, bool half) {
  const FloatArray x(std::move(activations), "activations", 2);
  const auto rows = static_cast<std::size_t>(x.matrix().rows);
  const auto width = static_cast<std::size_t>(matrix.spec().rows);
  auto out = std::make_unique_for_overwrite<float[]>(rows * width);
  {
    nb::gil_scoped_release release;
    matmul(matrix, x.matrix(), out.get(), half ? Precision::half : Precision::single);
  }
  return numpy_array(std::move(out), {rows, width});
}

// Contiguous rows of activations and of products, at addresses. Rooms for float32 are those of as
// many rows as are multiplied at once.
void multiply_at(const PackedMatrix& matrix, Address activations,
                 const std::string& activation_type, Index count, Address output,
                 const std::string& output_type, bool half) {
  const ElementType in = element_type(activation_type), out = element_type(output_type);
  const Precision of_16_bits = in == ElementType::bfloat16 ? Precision::bfloat16 : Precision::half;
  const Precision precision = half ? of_16_bits : Precision::single;
  const Index rows = matrix.spec().rows, cols = matrix.spec().cols;
  const nb::gil_scoped_release release;
  FloatBuffer x_room, y_room;
  if (out != ElementType::float32) y_room = FloatBuffer(std::min(count, kActivationsAtOnce) * rows);
  for (Index first = 0; first < count; first += kActivationsAtOnce) {
    const Index some = std::min(count - first, kActivationsAtOnce);
    const auto* source =
        reinterpret_cast<const std::byte*>(activations) + first * cols * size_of(in);
    auto* result = reinterpret_cast<std::byte*>(output) + first * rows * size_of(out);
    const float* x = to_float32(source, in, some * cols, x_room);
    float* y = out == ElementType::float32 ? reinterpret_cast<float*>(result) : y_room.data();
    matmul(matrix, {x, some, cols, cols}, y, precision);
    if (out != ElementType::float32) from_float32(y, some * rows, out, result);
  }
}

CompressionOptions compression_options(const std::string& codec, int code_bits, Index rank,
                                       int factor_bits, const std::string& odc, bool signs,
                                       int max_alternations, std::uint64_t seed, int state_bits,
                                       bool unbiased, bool feedback) {
  const JointOptions joint{codec_from_name(codec), code_bits, rank,       factor_bits,
                           max_alternations,       seed,      state_bits, unbiased};
  return {joint, odc_from_name(odc), signs, feedback};
}

nb::tuple compress(AnyArray weight, const CompressionOptions& options,
                   std::optional<AnyArray> input_second_moment,
                   std::optional<AnyArray> output_second_moment) {
  const FloatArray dense_weight(std::move(weight), "weight", 2);
  const MomentArguments moments(std::move(input_second_moment), std::move(output_second_moment));
  CompressionResult result;
  {
    nb::gil_scoped_release release;
    result = compress_matrix(dense_weight.matrix(), options, moments.view());
  }
  return nb::make_tuple(std::move(result.matrix), std::move(result.objective));
}

}  // namespace

void bind_packed_matrix(nb::module_& m) {
  nb::class_<PackedMatrix>(m, "PackedMatrix")
      .def_static("from_tensors", &from_tensors, nb::arg("tensors"), nb::arg("in_place") = false,
                  "From a dict of flat uint8 arrays; validates everything. In place: keeps the "
                  "arrays alive and reads their memory, which must not change.")
      .def("tensors", &tensors)
      .def("spec", [](const PackedMatrix& matrix) { return spec_to_dict(matrix.spec()); })
      .def("dense", &dense)
      .def("code_planes", &code_planes)
      .def("matmul", &multiply, nb::arg("activations"), nb::arg("half"))
      .def("matmul_at", &multiply_at, nb::arg("activations"), nb::arg("activation_type"),
           nb::arg("count"), nb::arg("output"), nb::arg("output_type"), nb::arg("half"))
      .def_prop_ro("nbytes", &PackedMatrix::bytes);
  m.def("tensor_layout", &layout, nb::arg("spec"));
  nb::class_<CompressionOptions>(m, "CompressionOptions")
      .def(nb::new_(&compression_options), nb::kw_only(), nb::arg("codec"), nb::arg("code_bits"),
           nb::arg("rank"), nb::arg("factor_bits"), nb::arg("odc"), nb::arg("signs"),
           nb::arg("max_alternations"), nb::arg("seed"), nb::arg("state_bits"), nb::arg("unbiased"),
           nb::arg("feedback"));
  m.def("compress_matrix", &compress, nb::arg("weight"), nb::arg("options"), nb::kw_only(),
        nb::arg("input_second_moment") = nb::none(), nb::arg("output_second_moment") = nb::none());
  m.attr("FORMAT_VERSION") = kFormatVersion;
}

}  // namespace llava_fa::bindings

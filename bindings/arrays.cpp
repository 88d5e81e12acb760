// Conversion of arrays at the Python boundary.
#include "arrays.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "../cpp/src/bfloat16.hpp"
#include "../cpp/src/half_float.hpp"

namespace llava_fa::bindings {
namespace {

using Code = nb::dlpack::dtype_code;

template <typename Array>
bool is(const Array& array, Code code, int bits) {
  return array.dtype().code == static_cast<std::uint8_t>(code) && array.dtype().bits == bits;
}

template <typename Array>
std::string describe_dtype(const Array& array) {
  return "DLPack code " + std::to_string(array.dtype().code) + " of " +
         std::to_string(array.dtype().bits) + " bits";
}

// Row-major copy of a (rows, cols) strided array through `convert`.
template <typename T, typename Convert>
void convert_strided(const AnyArray& array, Index rows, Index cols, Index row_stride,
                     Index col_stride, float* out, Convert convert) {
  const T* data = static_cast<const T*>(array.data());
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) *out++ = convert(data[i * row_stride + j * col_stride]);
  }
}

void check_dimensions(const AnyArray& array, const char* what, std::size_t ndim) {
  if (array.ndim() == ndim) return;
  throw nb::value_error((std::string(what) + " has " + std::to_string(array.ndim()) +
                         " dimensions, expected " + std::to_string(ndim))
                            .c_str());
}

}  // namespace

FloatArray::FloatArray(AnyArray array, const char* what, std::size_t ndim)
    : keep_alive_(std::move(array)) {
  const AnyArray& in = keep_alive_;
  check_dimensions(in, what, ndim);
  const Index rows = ndim == 2 ? static_cast<Index>(in.shape(0)) : 1;
  const Index cols = static_cast<Index>(in.shape(ndim - 1));
  const Index row_stride = ndim == 2 ? in.stride(0) : cols;
  const Index col_stride = in.stride(ndim - 1);
  view_ = {static_cast<const float*>(in.data()), rows, cols, row_stride};
  if (is(in, Code::Float, 32) && (col_stride == 1 || cols <= 1) &&
      (row_stride >= cols || rows <= 1)) {
    return;
  }
  copy_.resize(static_cast<std::size_t>(rows * cols));
  view_ = {copy_.data(), rows, cols, cols};
  float* out = copy_.data();
  if (is(in, Code::Float, 32)) {
    convert_strided<float>(in, rows, cols, row_stride, col_stride, out, [](float x) { return x; });
  } else if (is(in, Code::Float, 64)) {
    convert_strided<double>(in, rows, cols, row_stride, col_stride, out,
                            [](double x) { return static_cast<float>(x); });
  } else if (is(in, Code::Float, 16)) {
    convert_strided<std::uint16_t>(in, rows, cols, row_stride, col_stride, out, half_to_float);
  } else if (is(in, Code::Bfloat, 16)) {
    convert_strided<std::uint16_t>(in, rows, cols, row_stride, col_stride, out, bfloat16_to_float);
  } else {
    throw nb::type_error((std::string(what) + " has dtype " + describe_dtype(in) +
                          ", expected float16, bfloat16, float32 or float64")
                             .c_str());
  }
}

ElementType element_type(const std::string& name) {
  if (name == "float32") return ElementType::float32;
  if (name == "bfloat16") return ElementType::bfloat16;
  if (name == "float16") return ElementType::float16;
  throw nb::type_error(("values are " + name + ", expected float32, bfloat16 or float16").c_str());
}

const float* to_float32(const void* values, ElementType type, Index count, FloatBuffer& room) {
  if (type == ElementType::float32) return static_cast<const float*>(values);
  const auto* in = static_cast<const std::uint16_t*>(values);
  if (room.data() == nullptr) room = FloatBuffer(count);
  if (type == ElementType::bfloat16) {
    std::transform(in, in + count, room.data(), bfloat16_to_float);
  } else {
    std::transform(in, in + count, room.data(), half_to_float);
  }
  return room.data();
}

void from_float32(const float* values, Index count, ElementType type, void* out) {
  auto* rounded = static_cast<std::uint16_t*>(out);
  if (type == ElementType::bfloat16) {
    std::transform(values, values + count, rounded, float_to_bfloat16);
  } else {
    std::transform(values, values + count, rounded, float_to_half);
  }
}

namespace {

template <typename T>
void split_strided(const AnyArray& in, ComplexMatrix& out) {
  const auto* data = static_cast<const std::complex<T>*>(in.data());
  for (Index i = 0; i < out.rows(); ++i) {
    for (Index j = 0; j < out.cols(); ++j) {
      const std::complex<T> value = data[i * in.stride(0) + j * in.stride(1)];
      out.real()[i * out.cols() + j] = static_cast<float>(value.real());
      out.imag()[i * out.cols() + j] = static_cast<float>(value.imag());
    }
  }
}

}  // namespace

ComplexMatrix split_planes(const AnyArray& array, const char* what) {
  check_dimensions(array, what, 2);
  ComplexMatrix out(static_cast<Index>(array.shape(0)), static_cast<Index>(array.shape(1)));
  if (is(array, Code::Complex, 64)) {
    split_strided<float>(array, out);
  } else if (is(array, Code::Complex, 128)) {
    split_strided<double>(array, out);
  } else {
    throw nb::type_error((std::string(what) + " has dtype " + describe_dtype(array) +
                          ", expected complex64 or complex128")
                             .c_str());
  }
  return out;
}

nb::object numpy_complex(const ComplexMatrix& matrix) {
  auto data = std::make_unique<std::complex<float>[]>(static_cast<std::size_t>(matrix.count()));
  for (Index i = 0; i < matrix.count(); ++i) data[i] = {matrix.real()[i], matrix.imag()[i]};
  return numpy_array(std::move(data), {static_cast<std::size_t>(matrix.rows()),
                                       static_cast<std::size_t>(matrix.cols())});
}

nb::object numpy_bytes(std::span<const std::byte> bytes, const char* dtype,
                       std::vector<std::size_t> shape) {
  auto data = std::make_unique<std::uint8_t[]>(bytes.size());
  std::memcpy(data.get(), bytes.data(), bytes.size());
  nb::object flat = numpy_array(std::move(data), {bytes.size()});
  nb::list extents;
  for (const std::size_t extent : shape) extents.append(extent);
  return flat.attr("view")(dtype).attr("reshape")(nb::tuple(extents));
}

}  // namespace llava_fa::bindings

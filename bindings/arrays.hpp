// Arrays across the Python boundary: any real dtype and stride in, NumPy arrays out.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <complex>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "llava_fa/types.hpp"

namespace llava_fa::bindings {

namespace nb = nanobind;

using AnyArray = nb::ndarray<nb::ro, nb::device::cpu>;

// A float32 row-major view of an incoming array; owns a converted copy only where the dtype or the
// strides require one. Must be created and destroyed with the GIL held, read without it.
class FloatArray {
 public:
  // `what` names the argument in errors; ndim is 1 or 2. float16, bfloat16, float32 and float64
  // are accepted; other dtypes raise TypeError, other dimensions ValueError.
  FloatArray(AnyArray array, const char* what, std::size_t ndim);

  MatrixView matrix() const { return view_; }
  std::span<const float> vector() const {
    return {view_.data, static_cast<std::size_t>(view_.rows * view_.cols)};
  }

 private:
  AnyArray keep_alive_;
  std::vector<float> copy_;
  MatrixView view_;
};

// Memory of the caller, where taking an array over would cost more than a small product.
using Address = std::uintptr_t;

// By the name that torch and NumPy have for it; TypeError if there is none.
ElementType element_type(const std::string& name);

// Bytes of one value.
constexpr Index size_of(ElementType type) { return type == ElementType::float32 ? 4 : 2; }

// `count` values as float32: themselves, or a copy in `room`, which is made if it is empty.
const float* to_float32(const void* values, ElementType type, Index count, FloatBuffer& room);

// Rounds `count` values to `type`, bfloat16 or float16, to nearest, ties to even.
void from_float32(const float* values, Index count, ElementType type, void* out);

// Complex input (complex64 or complex128), always split into planes.
ComplexMatrix split_planes(const AnyArray& array, const char* what);

// NumPy arrays that own their memory.
template <typename T>
nb::object numpy_array(std::unique_ptr<T[]> data, std::vector<std::size_t> shape) {
  T* raw = data.release();
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(raw, shape.size(), shape.data(), owner));
}

template <typename T>
nb::object numpy_copy(std::span<const T> values, std::vector<std::size_t> shape) {
  auto data = std::make_unique<T[]>(values.size());
  std::copy(values.begin(), values.end(), data.get());
  return numpy_array(std::move(data), std::move(shape));
}

nb::object numpy_complex(const ComplexMatrix& matrix);
// Raw bytes as an array of the dtype that stored tensors of that name have.
nb::object numpy_bytes(std::span<const std::byte> bytes, const char* dtype,
                       std::vector<std::size_t> shape);

}  // namespace llava_fa::bindings

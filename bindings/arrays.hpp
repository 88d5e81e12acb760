// Arrays across the Python boundary: any real dtype and stride in, NumPy arrays out.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <complex>
#include <memory>
#include <optional>
#include <span>
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

using WritableArray = nb::ndarray<nb::device::cpu, nb::c_contig>;

// Room for float32 results that are rounded to the dtype of an array given by the caller. Must be
// created and destroyed with the GIL held, used without it.
class RoundedArray {
 public:
  // float16, bfloat16 and float32 are accepted; other dtypes raise TypeError, other shapes than
  // (rows, cols) ValueError.
  RoundedArray(const WritableArray& array, const char* what, Index rows, Index cols);

  float* data() { return copy_.empty() ? static_cast<float*>(array_) : copy_.data(); }
  // Writes what stands in data() to the array.
  void finish();

 private:
  void* array_;
  bool brain_ = false;  // bfloat16, not float16
  std::vector<float> copy_;
};

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

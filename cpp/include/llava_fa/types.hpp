// Shared vocabulary of the library: index type, matrix views, aligned storage, split complex
// planes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace llava_fa {

// All sizes and offsets are 64-bit and signed, on every backend.
using Index = std::int64_t;

// Types that activations and products may have in memory; arithmetic is in float32.
enum class ElementType { float32, bfloat16, float16 };
constexpr Index item_bytes(ElementType type) { return type == ElementType::float32 ? 4 : 2; }

// Read-only view of a real float32 matrix, row-major. Does not own.
struct MatrixView {
  const float* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index row_stride = 0;  // elements from one row to the next, >= cols

  const float* row(Index i) const { return data + i * row_stride; }
};

// Uninitialized 64-byte aligned storage; large blocks ask the system for huge pages, because the
// column passes of the transforms touch one cache line per page.
class FloatBuffer {
 public:
  FloatBuffer() = default;
  explicit FloatBuffer(Index count);
  ~FloatBuffer();
  FloatBuffer(FloatBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  FloatBuffer& operator=(FloatBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  FloatBuffer(const FloatBuffer&) = delete;
  FloatBuffer& operator=(const FloatBuffer&) = delete;

  float* data() { return data_; }
  const float* data() const { return data_; }
  Index count() const { return count_; }

 private:
  float* data_ = nullptr;
  Index count_ = 0;
};

// Complex float32 matrix stored as two row-major planes, real then imaginary, in one block of
// 2 * rows * cols floats. The planes stacked form a real (2*rows) x cols matrix, so complex
// products are single real products and every elementwise loop is plain SIMD.
class ComplexMatrix {
 public:
  ComplexMatrix() = default;
  ComplexMatrix(Index rows, Index cols) : rows_(rows), cols_(cols), planes_(2 * rows * cols) {}

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index count() const { return rows_ * cols_; }
  float* real() { return planes_.data(); }
  float* imag() { return planes_.data() + count(); }
  const float* real() const { return planes_.data(); }
  const float* imag() const { return planes_.data() + count(); }
  bool empty() const { return count() == 0; }

  ComplexMatrix clone() const;

 private:
  Index rows_ = 0;
  Index cols_ = 0;
  FloatBuffer planes_;
};

}  // namespace llava_fa

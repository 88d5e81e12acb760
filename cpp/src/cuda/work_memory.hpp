// The workspace of a compression as arrays, copies to and from them, and products in them.
//
// A Queue runs what it is given in order: launch(kernel, grid_x, grid_y, shared_bytes),
// upload(to, bytes), which returns when the bytes have been read, download(from, bytes) and wait(),
// which wait for all that was queued before.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "complex.hpp"
#include "fft_plan.hpp"
#include "llava_fa/types.hpp"
#include "product_tile.hpp"

namespace llava_fa::cuda {

template <class Queue>
class WorkMemory {
 public:
  WorkMemory(void* first, Queue& queue) : first_(static_cast<std::byte*>(first)), queue_(queue) {}

  Queue& queue() const { return queue_; }

  // Launches a kernel of tiles of a product.
  template <class Kernel>
  void multiply(const Kernel& kernel) const {
    queue_.launch(kernel, kernel.grid().tiles(), 1, ProductTile::shared_bytes());
  }

  template <typename T>
  T* at(Index place) const {
    return reinterpret_cast<T*>(first_ + place);
  }

  template <typename T>
  T* upload(std::span<const T> values, Index place) const {
    queue_.upload(at<std::byte>(place), std::as_bytes(values));
    return at<T>(place);
  }

  // Of so many values, ones if there are none.
  const float* upload_or_ones(std::span<const float> values, Index place, Index count) const {
    const std::vector<float> ones(values.empty() ? static_cast<std::size_t>(count) : 0, 1.0f);
    return upload(values.empty() ? std::span(ones) : values, place);
  }

  // Planes become pairs.
  Complex* upload(const ComplexMatrix& matrix, Index place) const {
    std::vector<Complex> pairs;
    pairs.reserve(static_cast<std::size_t>(matrix.count()));
    for (Index i = 0; i < matrix.count(); ++i)
      pairs.push_back({matrix.real()[i], matrix.imag()[i]});
    return upload(std::span<const Complex>(pairs), place);
  }

  template <typename T>
  std::vector<T> download(const T* values, Index count) const {
    std::vector<T> out(static_cast<std::size_t>(count));
    queue_.download(values, std::as_writable_bytes(std::span(out)));
    return out;
  }

  ComplexMatrix download(const Complex* values, Index rows, Index cols) const {
    const std::vector<Complex> pairs = download(values, rows * cols);
    ComplexMatrix out(rows, cols);
    for (Index i = 0; i < out.count(); ++i) {
      out.real()[i] = pairs[static_cast<std::size_t>(i)].real;
      out.imag()[i] = pairs[static_cast<std::size_t>(i)].imag;
    }
    return out;
  }

 private:
  std::byte* first_;
  Queue& queue_;
};

}  // namespace llava_fa::cuda

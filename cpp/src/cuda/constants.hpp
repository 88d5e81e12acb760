// The block of constants that a product needs in device memory: built on the host, copied by the
// caller, valid at any address.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "llava_fa/types.hpp"

namespace llava_fa::cuda {

class ConstantsBuilder {
 public:
  // Appends values on a 16-byte boundary and returns their place.
  template <typename T>
  Index add(std::span<const T> values) {
    constexpr std::size_t kAlignment = 16;
    bytes_.resize((bytes_.size() + kAlignment - 1) / kAlignment * kAlignment);
    const std::size_t place = bytes_.size();
    bytes_.resize(place + values.size_bytes());
    if (!values.empty()) std::memcpy(bytes_.data() + place, values.data(), values.size_bytes());
    return static_cast<Index>(place);
  }
  template <typename T>
  Index add(const std::vector<T>& values) {
    return add(std::span<const T>(values));
  }

  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Values at a place of a block.
template <typename T>
const T* constants_at(const std::byte* constants, Index place) {
  return reinterpret_cast<const T*>(constants + place);
}

}  // namespace llava_fa::cuda

// Places for arrays one after another in a block of device memory, each aligned for any kernel.
#pragma once

#include "llava_fa/types.hpp"

namespace llava_fa::cuda {

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

class Arena {
 public:
  Index take(Index bytes) {
    const Index place = bytes_;
    bytes_ += ceil_div(bytes, kStep) * kStep;
    return place;
  }
  Index bytes() const { return bytes_; }

 private:
  static constexpr Index kStep = 256;
  Index bytes_ = 0;
};

}  // namespace llava_fa::cuda

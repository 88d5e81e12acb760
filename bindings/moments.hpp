// Second moments as Python passes them: a vector, a full matrix, or nothing.
#pragma once

#include <optional>
#include <vector>

#include "arrays.hpp"
#include "llava_fa/calibration.hpp"

namespace llava_fa::bindings {

class MomentArguments {
 public:
  MomentArguments(std::optional<AnyArray> input, std::optional<AnyArray> output);
  SecondMoments view() const;

 private:
  std::optional<FloatArray> input_;
  std::optional<FloatArray> output_;
  bool input_is_full_ = false;
  std::vector<float> input_diagonal_;  // of a full matrix
  std::vector<float> contiguous_;      // a full matrix whose rows are not adjacent
};

}  // namespace llava_fa::bindings

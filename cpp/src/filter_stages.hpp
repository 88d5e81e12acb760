// A second moment to its feedback filter wherever that is done: what feedback.cpp asks of the
// host's memory or of a device's (cuda/filter_pipeline.hpp).
#pragma once

#include <span>

#include "llava_fa/feedback.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

class FilterStages {
 public:
  virtual ~FilterStages() = default;

  // The spectrum Σ̃ of diag(multiplier) Σ diag(multiplier), whose mean diagonal is one.
  virtual void transform(const MatrixView& second_moment, std::span<const float> multiplier) = 0;
  // Σ̃ + damping · I = R Rᴴ; false if that is not positive definite.
  virtual bool factor(double damping) = 0;
  // R = I.
  virtual void set_identity(Index size) = 0;
};

// feedback_filter(), stage by stage: what was factored last, or the identity, is the filter.
void find_filter(FilterStages& stages, const MatrixView& second_moment,
                 std::span<const float> input_multiplier);

}  // namespace llava_fa

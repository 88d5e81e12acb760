// The encoder with the row errors that the joint solver sums into its objective.
#pragma once

#include <span>

#include "llava_fa/polar_codec.hpp"

namespace llava_fa {

PolarCodes polar_encode_with_errors(ComplexMatrix& values, const Constellation& points,
                                    bool write_back, std::span<const float> column_weight,
                                    std::span<double> row_errors);

}  // namespace llava_fa

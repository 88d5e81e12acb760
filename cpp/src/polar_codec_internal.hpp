// The encoder with the row errors that the joint solver sums into its objective, and the checks
// that all encoders share.
#pragma once

#include <cstdint>
#include <span>

#include "llava_fa/polar_codec.hpp"

namespace llava_fa {

// Throws Error(invalid_argument) on empty values or weights of another length.
void require_encodable(const ComplexMatrix& values, std::span<const float> column_weight);
// Throws Error(invalid_argument) if a row scale does not fit binary16.
void require_finite_scales(std::span<const std::uint16_t> row_scale);
// Codes of the right sizes, zero.
PolarCodes empty_codes(const ComplexMatrix& values, int code_bits);

PolarCodes polar_encode_with_errors(ComplexMatrix& values, const Constellation& points,
                                    bool write_back, std::span<const float> column_weight,
                                    std::span<double> row_errors);

}  // namespace llava_fa

// What stages return, as tuples of NumPy arrays, wherever they ran.
#pragma once

#include "arrays.hpp"
#include "llava_fa/calibration.hpp"
#include "llava_fa/low_rank.hpp"
#include "llava_fa/polar_codec.hpp"

namespace llava_fa::bindings {

// Left vectors, singular values, right vectors.
inline nb::tuple numpy_svd(const TruncatedSvd& svd) {
  return nb::make_tuple(numpy_complex(svd.left_vectors),
                        numpy_copy<float>(svd.singular_values, {svd.singular_values.size()}),
                        numpy_complex(svd.right_vectors));
}

// Codes (rows, bytes of a row) and float16 row scales.
inline nb::tuple numpy_codes(const PolarCodes& codes) {
  const std::size_t rows = codes.row_scale.size();
  return nb::make_tuple(numpy_copy<std::uint8_t>(codes.packed, {rows, codes.packed.size() / rows}),
                        numpy_bytes(std::as_bytes(std::span<const std::uint16_t>(codes.row_scale)),
                                    "float16", {rows}));
}

// In and out, each None if there are none.
inline nb::tuple numpy_scales(const DiagonalScales& scales) {
  const auto or_none = [](const std::vector<float>& values) -> nb::object {
    if (values.empty()) return nb::none();
    return numpy_copy<float>(values, {values.size()});
  };
  return nb::make_tuple(or_none(scales.in), or_none(scales.out));
}

}  // namespace llava_fa::bindings

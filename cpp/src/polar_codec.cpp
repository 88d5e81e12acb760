// PolarQuant: checks, sizes and the public entry points; the row kernels are the backend's.
#include "llava_fa/polar_codec.hpp"

#include <algorithm>

#include "backend.hpp"
#include "bit_packing.hpp"
#include "checks.hpp"
#include "code_panels.hpp"
#include "half_float.hpp"
#include "llava_fa/runtime.hpp"
#include "polar_codec_internal.hpp"

namespace llava_fa {

PolarCodes polar_encode(ComplexMatrix& values, const Constellation& points, bool write_back,
                        std::span<const float> column_weight) {
  std::vector<double> row_errors(static_cast<std::size_t>(values.rows()));
  return polar_encode_with_errors(values, points, write_back, column_weight, row_errors);
}

void require_encodable(const ComplexMatrix& values, std::span<const float> column_weight) {
  require_argument(values.rows() >= 1 && values.cols() >= 1, "values have shape (", values.rows(),
                   ", ", values.cols(), "), expected at least (1, 1)");
  require_argument(
      column_weight.empty() || static_cast<Index>(column_weight.size()) == values.cols(),
      "column_weight has length ", column_weight.size(), ", expected ", values.cols());
}

PolarCodes empty_codes(const ComplexMatrix& values, int code_bits) {
  PolarCodes codes{values.rows(), values.cols(), code_bits, {}, {}};
  codes.packed.resize(values.rows() * packed_row_bytes(values.cols(), code_bits));
  codes.row_scale.resize(values.rows());
  return codes;
}

void require_finite_scales(std::span<const std::uint16_t> row_scale) {
  const auto bad = std::find_if_not(row_scale.begin(), row_scale.end(), half_is_finite);
  require_argument(bad == row_scale.end(), "the scale of row ", bad - row_scale.begin(),
                   " exceeds the float16 range (", kLargestHalf,
                   "): divide the values by their root mean square first");
}

PolarCodes polar_encode_with_errors(ComplexMatrix& values, const Constellation& points,
                                    bool write_back, std::span<const float> column_weight,
                                    std::span<double> row_errors) {
  require_encodable(values, column_weight);
  PolarCodes codes = empty_codes(values, points.code_bits);
  cpu_backend().encode_rows(values, points, column_weight.empty() ? nullptr : column_weight.data(),
                            write_back, num_threads(), codes, row_errors);
  require_finite_scales(codes.row_scale);
  return codes;
}

void polar_decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                       Index cols, const Constellation& points, Index first_row, Index row_count,
                       float* real, float* imag) {
  cpu_backend().decode_rows(packed, row_scale, rows, cols, points, first_row, row_count,
                            num_threads(), real, imag);
}

ComplexMatrix polar_decode(const PolarCodes& codes, const Constellation& points) {
  ComplexMatrix values(codes.rows, codes.cols);
  polar_decode_rows(codes.packed.data(), codes.row_scale.data(), codes.rows, codes.cols, points, 0,
                    codes.rows, values.real(), values.imag());
  return values;
}

void pack_codes(std::span<const std::uint16_t> codes, int code_bits, std::uint8_t* packed) {
  pack_row(codes.data(), static_cast<Index>(codes.size()), code_bits, packed);
}

void unpack_codes(const std::uint8_t* packed, int code_bits, std::span<std::uint16_t> codes) {
  unpack_row(packed, static_cast<Index>(codes.size()), code_bits, codes.data());
}

std::vector<std::uint16_t> codes_of_row(const PolarCodes& codes, Index row) {
  RowReader reader(codes.packed.data(), codes.rows, packed_row_bytes(codes.cols, codes.code_bits));
  std::vector<std::uint16_t> out(static_cast<std::size_t>(codes.cols));
  unpack_codes(reader.row(row), codes.code_bits, out);
  return out;
}

}  // namespace llava_fa

// Dispatch over codecs; checks of sizes and scales.
#include "code_book.hpp"

#include <numeric>
#include <vector>

#include "backend.hpp"
#include "checks.hpp"
#include "half_float.hpp"
#include "llava_fa/runtime.hpp"
#include "polar_codec_internal.hpp"

namespace llava_fa {

namespace {

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// Mean squared error of the code on a unit-power Gaussian.
double distortion(Index rows, const CodeBook& book) {
  if (book.codec != Codec::trellis) {
    return constellation(book.codec, book.code_bits).design_distortion;
  }
  return trellis_distortion(book.code_bits,
                            effective_state_bits(rows, book.code_bits, book.state_bits));
}

ColumnCoding column_coding(Index rows, const CodeBook& book, const ErrorWeight& weight,
                           bool write_back) {
  ColumnCoding coding;
  coding.filter = weight.filter;
  coding.column_weight = weight.column.empty() ? nullptr : weight.column.data();
  coding.write_back = write_back;
  coding.refit = weight.refit;
  if (weight.filter != nullptr) coding.gain = feedback_gain(rows, book);
  if (book.codec == Codec::trellis) {
    coding.trellis =
        &trellis(book.code_bits, effective_state_bits(rows, book.code_bits, book.state_bits));
  } else {
    coding.constellation = &constellation(book.codec, book.code_bits);
  }
  return coding;
}

}  // namespace

float feedback_gain(Index rows, const CodeBook& book) {
  if (book.codec == Codec::uniform) return 1.0f;
  return static_cast<float>(1.0 / (1.0 - distortion(rows, book)));
}

EncodedEntries encode_entries(ComplexMatrix& values, const CodeBook& book,
                              const ErrorWeight& weight, bool write_back) {
  require_encodable(values, weight.column);
  const std::size_t rows = static_cast<std::size_t>(values.rows());
  std::vector<double> errors(rows), energies(rows);
  EncodedEntries out;
  if (book.codec != Codec::trellis && weight.filter == nullptr) {
    cpu_backend().row_energies(values, weight.column.empty() ? nullptr : weight.column.data(),
                               num_threads(), energies);
    out.codes = polar_encode_with_errors(values, constellation(book.codec, book.code_bits),
                                         write_back, weight.column, errors);
  } else {
    const ColumnCoding coding = column_coding(values.rows(), book, weight, write_back);
    out.codes = empty_codes(values, book.code_bits);
    cpu_backend().encode_columns(values, coding, num_threads(), out.codes, errors, energies);
    require_finite_scales(out.codes.row_scale);
  }
  out.error = sum(errors);
  out.energy = sum(energies);
  return out;
}

void decode_entries(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                    Index cols, const CodeBook& book, Index first_row, Index row_count, float* real,
                    float* imag) {
  if (book.codec == Codec::trellis) {
    trellis_decode_rows(packed, row_scale, rows, cols, book.code_bits, book.state_bits, first_row,
                        row_count, real, imag);
  } else {
    polar_decode_rows(packed, row_scale, rows, cols, constellation(book.codec, book.code_bits),
                      first_row, row_count, real, imag);
  }
}

}  // namespace llava_fa

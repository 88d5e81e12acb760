// One encoder and one decoder for the entries of a half spectrum, whichever codec they use: chooses
// between rows coded at once (polar_codec) and column by column (trellis, feedback).
#pragma once

#include <cstdint>
#include <span>

#include "llava_fa/constellation.hpp"
#include "llava_fa/feedback.hpp"
#include "llava_fa/polar_codec.hpp"

namespace llava_fa {

struct CodeBook {
  Codec codec = Codec::ring;
  int code_bits = 8;
  int state_bits = 0;  // trellis only
};

// What an error costs: weighted squares of the columns, or the feedback filter's objective.
struct ErrorWeight {
  std::span<const float> column;  // (cols) squared weights, or empty
  const FeedbackFilter* filter = nullptr;
  bool refit = true;  // row scales by least squares in the end
};

// With a filter, codes decode 1 / (1 - D) larger than a single entry's least squares wants, D being
// the codec's distortion on a Gaussian: then what is fed back is noise, and not in part the entry
// itself. That lowers the fed-back objective and leaves no direction of the input shrunk.
//
// Codes of `values` (rows, cols) with refitted row scales; `values` becomes the decoded values if
// write_back. Returns with the codes the total cost, and the cost of coding nothing.
// Throws Error(invalid_argument) as polar_encode does.
struct EncodedEntries {
  PolarCodes codes;
  double error = 0;
  double energy = 0;
};
EncodedEntries encode_entries(ComplexMatrix& values, const CodeBook& book,
                              const ErrorWeight& weight, bool write_back);

// How much larger codes under feedback decode, for a matrix of so many rows: 1 / (1 - D);
// `uniform`, whose points are relative to the largest magnitude, 1.
float feedback_gain(Index rows, const CodeBook& book);

// Decodes rows [first_row, first_row + row_count) of a matrix of `rows` rows.
void decode_entries(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                    Index cols, const CodeBook& book, Index first_row, Index row_count, float* real,
                    float* imag);

}  // namespace llava_fa

// Points of stored codes: which one each entry of a row has, and loading several of them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backend.hpp"
#include "registers.hpp"
#include "row_unpacker.hpp"
#include "trellis.hpp"

namespace llava_fa::cpu {

// Real and imaginary parts of all points in turn.
inline const float* point_pairs(const CodedMatrix& matrix) {
  return matrix.trellis != nullptr ? matrix.trellis->point_pairs.data()
                                   : matrix.constellation->point_pairs.data();
}

// Indexes of the points of a row: its codes, or the states of a trellis.
class PointIndexes {
 public:
  explicit PointIndexes(const CodedMatrix& matrix) {
    if (matrix.trellis != nullptr) {
      states_.emplace(matrix.packed, matrix.rows, matrix.cols, *matrix.trellis);
    } else {
      codes_.emplace(matrix.packed, matrix.rows, matrix.cols, matrix.code_bits());
    }
  }

  const std::uint16_t* of_row(Index row) {
    return states_ ? states_->at(row).data() : codes_->row(row);
  }

 private:
  std::optional<TrellisStates> states_;
  std::optional<RowCodesReader> codes_;
};

#if defined(LLAVA_FA_HAS_REGISTERS)

inline constexpr Index kPointsAtOnce = kFloats / 2;  // real and imaginary parts in turn

#endif

// real[l], imag[l] = scale · point index[l].
inline void decode_points(const std::uint16_t* index, Index count, const float* pairs, float scale,
                          float* real, float* imag) {
  Index l = 0;
#if defined(LLAVA_FA_HAS_REGISTERS)
  const Floats factor = all_floats(scale);
  for (; l + 2 * kPointsAtOnce <= count; l += 2 * kPointsAtOnce) {
    const Floats first = load_pairs(pairs, index + l);
    const Floats second = load_pairs(pairs, index + l + kPointsAtOnce);
    Floats re, im;
    split_pairs(first, second, re, im);
    store_floats(real + l, factor * re);
    store_floats(imag + l, factor * im);
  }
#endif
  for (; l < count; ++l) {
    real[l] = scale * pairs[2 * index[l]];
    imag[l] = scale * pairs[2 * index[l] + 1];
  }
}

}  // namespace llava_fa::cpu

// Points of stored codes: which one each entry of a row has, and loading several of them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "backend.hpp"
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

#if defined(__AVX2__)

inline constexpr Index kPointsAtOnce = 4;

// Four points, real and imaginary parts in turn.
inline __m256 load_points(const float* pairs, const std::uint16_t* index) {
  const auto pair = [&](int i) { return reinterpret_cast<const double*>(pairs + 2 * index[i]); };
  const __m128d low = _mm_loadh_pd(_mm_load_sd(pair(0)), pair(1));
  const __m128d high = _mm_loadh_pd(_mm_load_sd(pair(2)), pair(3));
  return _mm256_castpd_ps(_mm256_insertf128_pd(_mm256_castpd128_pd256(low), high, 1));
}

#endif

// real[l], imag[l] = scale · point index[l].
inline void decode_points(const std::uint16_t* index, Index count, const float* pairs, float scale,
                          float* real, float* imag) {
  Index l = 0;
#if defined(__AVX2__)
  const __m256 factor = _mm256_set1_ps(scale);
  for (; l + 2 * kPointsAtOnce <= count; l += 2 * kPointsAtOnce) {
    const __m256 first = load_points(pairs, index + l);
    const __m256 second = load_points(pairs, index + l + kPointsAtOnce);
    // Parts of entries {0, 1, 4, 5, 2, 3, 6, 7}, then in order.
    const __m256 re = _mm256_shuffle_ps(first, second, 0x88);
    const __m256 im = _mm256_shuffle_ps(first, second, 0xdd);
    const auto ordered = [&](__m256 part) {
      return _mm256_mul_ps(factor,
                           _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(part), 0xd8)));
    };
    _mm256_storeu_ps(real + l, ordered(re));
    _mm256_storeu_ps(imag + l, ordered(im));
  }
#endif
  for (; l < count; ++l) {
    real[l] = scale * pairs[2 * index[l]];
    imag[l] = scale * pairs[2 * index[l] + 1];
  }
}

}  // namespace llava_fa::cpu

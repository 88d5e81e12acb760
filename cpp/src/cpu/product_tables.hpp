// Products of points with entries of x in fixed point, as tables that stay in registers: sixteen
// values per table, each byte of the values in a plane of its own.
#pragma once

#if defined(__AVX2__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "code_tile.hpp"
#include "coded_product.hpp"
#include "parallel.hpp"

namespace llava_fa::cpu {

inline constexpr Index kTableSize = 16;
// Vectors are taken whose largest entry is between these; smaller blocks of them count as zero.
inline constexpr float kLeastLargest = 1e-18f, kMostLargest = 1e18f;
inline constexpr float kLeastBound = 1e-30f;

// Real and imaginary parts of sixteen products.
struct ProductTable {
  alignas(64) float real[kTableSize];
  alignas(64) float imag[kTableSize];
};

// Tables of `groups` groups; every kBlock of them share one step, the value of the last bit.
// Bytes of group g: kBytes planes of the real parts, lowest byte first, then of the imaginary ones.
template <int kBytes, Index kBlock>
class FixedPointTables {
 public:
  static constexpr Index kGroupBytes = 2 * kBytes * kTableSize;

  explicit FixedPointTables(Index groups)
      : bytes_(std::make_unique_for_overwrite<std::uint8_t[]>(
            static_cast<std::size_t>(groups * kGroupBytes))),
        steps_(static_cast<std::size_t>(groups / kBlock)) {}

  const std::uint8_t* group(Index g) const { return bytes_.get() + g * kGroupBytes; }
  float step(Index block) const { return steps_[block]; }

  // Fills one block: products(g, table) gives the values of group g, none larger than `bound`,
  // which become the integers `bias` + [-largest, largest].
  template <typename Products>
  void fill(Index block, float bound, std::int32_t largest, std::int32_t bias, Products products) {
    const bool counts = bound >= kLeastBound;
    steps_[block] = counts ? bound / static_cast<float>(largest) : 0.0f;
    const float inverse = counts ? static_cast<float>(largest) / bound : 0.0f;
    ProductTable table;
    for (Index g = block * kBlock; g < (block + 1) * kBlock; ++g) {
      products(g, table);
      std::uint8_t* planes = bytes_.get() + g * kGroupBytes;
      write(table.real, inverse, bias, planes);
      write(table.imag, inverse, bias, planes + kBytes * kTableSize);
    }
  }

 private:
  static void write(const float* values, float inverse, std::int32_t bias, std::uint8_t* planes) {
    const __m256 factor = _mm256_set1_ps(inverse);
    const auto fixed = [&](const float* eight) {
      const __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(eight), factor));
      return _mm256_add_epi32(rounded, _mm256_set1_epi32(bias));
    };
    __m256i first = fixed(values), second = fixed(values + 8);
    const __m256i low_byte = _mm256_set1_epi32(255);
    for (int b = 0; b < kBytes; ++b) {
      __m256i words = _mm256_packus_epi32(_mm256_and_si256(first, low_byte),
                                          _mm256_and_si256(second, low_byte));
      words = _mm256_permute4x64_epi64(words, 0xd8);  // packing works within halves
      _mm_storeu_si128(
          reinterpret_cast<__m128i*>(planes + b * kTableSize),
          _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
      first = _mm256_srli_epi32(first, 8);
      second = _mm256_srli_epi32(second, 8);
    }
  }

  std::unique_ptr<std::uint8_t[]> bytes_;
  std::vector<float> steps_;
};

// One table in both halves of a register.
inline __m256i load_table(const std::uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// Tables of a tile serve so many panels of rows while they are near.
inline constexpr Index kPanelsPerItem = 4;

// body(first_row, panels) for groups of up to kPanelsPerItem panels of 32 rows.
template <typename Body>
void for_panels(Index rows, int threads, Body body) {
  const Index panels = ceil_div(rows, kTileRows);
  parallel_for(ceil_div(panels, kPanelsPerItem), threads, [&](Index item) {
    const Index first = item * kPanelsPerItem;
    body(first * kTileRows, std::min(kPanelsPerItem, panels - first));
  });
}

// Real and imaginary sums of the 32 rows of a panel, as unpacking leaves them: rows {0-3, 16-19},
// {4-7, 20-23}, {8-11, 24-27} and {12-15, 28-31}.
using PanelSums = __m256[2][4];

// y of the panel's rows = factor · row scale · sums.
inline void store_panel(const PanelSums& sums, float factor, const CodedMatrix& matrix,
                        Index first_row, VectorSpan y) {
  alignas(32) float ordered[2][kTileRows];
  for (int component = 0; component < 2; ++component) {
    for (Index part = 0; part < 4; ++part) {
      const __m256 sum = sums[component][part];
      _mm_store_ps(ordered[component] + 4 * part, _mm256_castps256_ps128(sum));
      _mm_store_ps(ordered[component] + 16 + 4 * part, _mm256_extractf128_ps(sum, 1));
    }
  }
  for (Index r = 0; r < std::min(kTileRows, matrix.rows - first_row); ++r) {
    const float scale = factor * half_to_float(matrix.row_scale[first_row + r]);
    y.real[first_row + r] = scale * ordered[0][r];
    y.imag[first_row + r] = scale * ordered[1][r];
  }
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

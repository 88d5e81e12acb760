// Ring products: 16 rings of 16 phases, odd rings turned by half a phase. A code has a sign (bit
// 7), a ring (bits 6 to 3) and a phase (bits 2 to 0); its point is ± radius[ring] · exp(πiu / 16),
// where u = 2 · phase + ring mod 2, so that bits 3 to 0 tell u.
//
// 1. Per column, the products of x with the sixteen exp(πiu / 16) in fixed point.
// 2. Per 32 rows and column: signed radii and products are looked up in registers, multiplied and
//    rounded to words, which a block of 16 columns cannot overflow.
// 3. Per block the sums become float32.
#include "coded_product.hpp"

#if defined(__AVX2__)

#include <numbers>

#include "parallel.hpp"
#include "word_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRings = 16, kPhases = 16;
constexpr std::int32_t kMostRadius = 32767;  // to be divided by 2^15
constexpr double kNanosecondsPerCode = 0.09;

// exp(pi i u / 16) by the bits that tell u.
ProductTable unit_points() {
  ProductTable table;
  for (Index bits = 0; bits < kTableSize; ++bits) {
    const Index u = 2 * (bits % 8) + bits / 8;
    const double angle = std::numbers::pi * static_cast<double>(u) / kPhases;
    table.real[bits] = static_cast<float>(std::cos(angle));
    table.imag[bits] = static_cast<float>(std::sin(angle));
  }
  return table;
}

class RingProduct {
 public:
  static constexpr const RowOrder& kOrder = kWordOrder;

  RingProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : tiles_(matrix, WordTables::kTileColumns),
        tables_(unit_points(), /*largest=*/1.0f, /*offset=*/0.0f, x, matrix.cols, tiles_.count(),
                threads),
        unit_(matrix.constellation->rings.back().radius / static_cast<float>(kMostRadius)) {
    tabulate_radii(*matrix.constellation);
  }

  const CodeTiles& tiles() const { return tiles_; }
  // mulhrs divides by 2^15.
  float factor() const { return 32768.0f * unit_; }

  void add_tile(const std::uint8_t* codes, Index tile, RowSums& sums) const {
    for (Index b = 0; b < WordTables::kTileColumns; b += kWordBlock) {
      add_block(codes + b * kPanelRows, tile * WordTables::kTileColumns + b, sums);
    }
  }

 private:
  // What the codes of one column say of 32 rows.
  struct Column {
    __m256i angle;     // the bits that tell u
    __m256i radii[2];  // signed words of rows {0-7, 16-23} and {8-15, 24-31}
  };

  // Half units more than an integer: the one's complement of the integer then has the same radius
  // with the other sign.
  void tabulate_radii(const Constellation& points) {
    for (Index ring = 0; ring < kRings; ++ring) {
      const auto radius = static_cast<std::int32_t>(points.rings[ring].radius / unit_);
      for (int b = 0; b < 2; ++b) radii_[b][ring] = static_cast<std::uint8_t>(radius >> (8 * b));
    }
  }

  Column read_column(const std::uint8_t* codes) const {
    const __m256i low_nibble = _mm256_set1_epi8(15);
    prefetch_codes(codes);
    const __m256i bytes = load_bytes(codes);
    const __m256i ring = _mm256_and_si256(_mm256_srli_epi16(bytes, 3), low_nibble);
    const __m256i negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), bytes);  // all ones if so
    const auto plane = [&](int b) {
      return _mm256_xor_si256(_mm256_shuffle_epi8(load_table(radii_[b]), ring), negative);
    };
    const __m256i low = plane(0), high = plane(1);
    return {_mm256_and_si256(bytes, low_nibble),
            {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)}};
  }

  void add_block(const std::uint8_t* codes, Index first_column, RowSums& sums) const {
    WordSums words = {};
#pragma GCC unroll 2
    for (Index c = 0; c < kWordBlock; ++c) {
      const Column column = read_column(codes + c * kPanelRows);
      for (int component = 0; component < 2; ++component) {
        const auto [low, high] = tables_.look_up(first_column + c, component, column.angle);
        const __m256i products[2] = {_mm256_unpacklo_epi8(low, high),
                                     _mm256_unpackhi_epi8(low, high)};
        for (int half = 0; half < 2; ++half) {
          words[component][half] = _mm256_add_epi16(
              words[component][half], _mm256_mulhrs_epi16(products[half], column.radii[half]));
        }
      }
    }
    add_words(words, tables_.step(first_column), sums);
  }

  CodeTiles tiles_;
  WordTables tables_;
  float unit_;
  alignas(16) std::uint8_t radii_[2][kRings];  // in planes of bytes
};

}  // namespace

bool ring_products_apply(const CodedMatrix& matrix) {
  if (matrix.constellation == nullptr) return false;
  const auto& rings = matrix.constellation->rings;
  if (rings.size() != kRings) return false;
  for (Index ring = 0; ring < kRings; ++ring) {
    const float offset = ring % 2 == 0 ? 0.0f : 0.5f;
    if (rings[ring].phases != kPhases || rings[ring].phase_offset != offset) return false;
  }
  return true;
}

void multiply_rings(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const int team = product_threads(matrix, threads, kNanosecondsPerCode);
  multiply_panels(RingProduct(matrix, x, team), matrix, x, team, y);
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

// Ring products: 16 rings of 16 phases, odd rings turned by half a phase, so that a code is
// 16 · ring + phase and its point is radius[ring] · exp(2 pi i u / 32), u = 2 · phase + ring mod 2.
//
// 1. Per column, the products of x with exp(2 pi i u / 32) for u < 16 in fixed point; the other
//    sixteen are their negatives.
// 2. Per 32 rows and column: the radii with that sign and the products are looked up in registers
//    and multiplied, rounded to 16 bits, which four columns cannot overflow.
// 3. Per four columns the sums are added to 32 bits, and per block of 16 they become float32.
#include "coded_product.hpp"

#if defined(__AVX2__)

#include <numbers>

#include "parallel.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRings = 16, kPhases = 16;
constexpr Index kTileColumns = 64;
constexpr Index kBlock = 16;  // columns that share a step
constexpr Index kAtOnce = 4;  // columns whose sums fit 16 bits:
constexpr std::int32_t kMostProduct = 8190;
constexpr std::int32_t kMostRadius = 32767;  // kAtOnce (kMostProduct kMostRadius / 2^15 + 1) < 2^15
constexpr double kNanosecondsPerCode = 0.11;

class RingProduct {
 public:
  // Lanes of the 32-bit sums: rows 0, 2, 4, 6, 16, ...; 1, 3, ...; 8, 10, ...; 9, 11, ...
  static constexpr RowOrder kOrder = {0, 2,  4,  6,  16, 18, 20, 22, 1, 3,  5,  7,  17, 19, 21, 23,
                                      8, 10, 12, 14, 24, 26, 28, 30, 9, 11, 13, 15, 25, 27, 29, 31};

  RingProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : cols_(matrix.cols),
        tiles_(matrix, kTileColumns),
        tables_(tiles_.count() * kTileColumns),
        unit_(matrix.constellation->rings.back().radius / static_cast<float>(kMostRadius)) {
    tabulate_radii(*matrix.constellation);
    for (Index u = 0; u < kTableSize; ++u) {
      const double angle = 2.0 * std::numbers::pi * static_cast<double>(u) / (2 * kPhases);
      turns_.real[u] = static_cast<float>(std::cos(angle));
      turns_.imag[u] = static_cast<float>(std::sin(angle));
    }
    parallel_for(tiles_.count(), threads, [&](Index tile) {
      constexpr Index kBlocks = kTileColumns / kBlock;
      for (Index block = tile * kBlocks; block < (tile + 1) * kBlocks; ++block) {
        fill_block(block, x);
      }
    });
  }

  const CodeTiles& tiles() const { return tiles_; }
  // mulhrs divides by 2^15.
  float factor() const { return 32768.0f * unit_; }

  void add_tile(const std::uint8_t* codes, Index tile, RowSums& sums) const {
    for (Index b = 0; b < kTileColumns; b += kBlock) {
      add_block(codes + b * kPanelRows, tile * kTileColumns + b, sums);
    }
  }

 private:
  using Tables = FixedPointTables<2, 8, kBlock>;

  // What the codes of one column say of 32 rows.
  struct Column {
    __m256i angle;     // u, of which the low four bits count
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

  void fill_block(Index block, VectorView x) {
    const Index first = block * kBlock, end = std::min(cols_, first + kBlock);
    float bound = 0;
    for (Index l = first; l < end; ++l) {
      bound = std::max(bound, std::sqrt(x.real[l] * x.real[l] + x.imag[l] * x.imag[l]));
    }
    tables_.fill(block, bound, kMostProduct, 0, [&](Index l, ProductTable& table) {
      const float re = l < end ? x.real[l] : 0.0f, im = l < end ? x.imag[l] : 0.0f;
      for (Index u = 0; u < kTableSize; ++u) {
        table.real[u] = turns_.real[u] * re - turns_.imag[u] * im;
        table.imag[u] = turns_.real[u] * im + turns_.imag[u] * re;
      }
    });
  }

  Column read_column(const std::uint8_t* codes) const {
    const __m256i low_nibble = _mm256_set1_epi8(15);
    prefetch_codes(codes);
    const __m256i bytes = load_bytes(codes);
    const __m256i ring = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low_nibble);
    const __m256i phase = _mm256_and_si256(bytes, low_nibble);
    // All ones where bit 3 of the phase is set.
    const __m256i upper_half =
        _mm256_cmpgt_epi8(_mm256_setzero_si256(), _mm256_slli_epi16(bytes, 4));
    const auto plane = [&](int b) {
      return _mm256_xor_si256(_mm256_shuffle_epi8(load_table(radii_[b]), ring), upper_half);
    };
    const __m256i low = plane(0), high = plane(1);
    const __m256i odd_ring = _mm256_and_si256(ring, _mm256_set1_epi8(1));
    return {_mm256_add_epi8(_mm256_add_epi8(phase, phase), odd_ring),
            {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)}};
  }

  void add_block(const std::uint8_t* codes, Index first_column, RowSums& sums) const {
    __m256i totals[2][4] = {};
    const std::uint8_t* tables = tables_.group(first_column);
    for (Index b = 0; b < kBlock; b += kAtOnce, tables += kAtOnce * Tables::kGroupBytes) {
      add_columns(codes + b * kPanelRows, tables, totals);
    }
    const __m256 step = _mm256_set1_ps(tables_.step(first_column / kBlock));
    for (int component = 0; component < 2; ++component) {
      for (int i = 0; i < 4; ++i) {
        sums[component][i] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[component][i]), step, sums[component][i]);
      }
    }
  }

  void add_columns(const std::uint8_t* codes, const std::uint8_t* tables,
                   __m256i (&totals)[2][4]) const {
    __m256i words[2][2] = {};
#pragma GCC unroll 4
    for (Index c = 0; c < kAtOnce; ++c, tables += Tables::kGroupBytes) {
      const Column column = read_column(codes + c * kPanelRows);
      for (int component = 0; component < 2; ++component) {
        const std::uint8_t* planes = tables + component * 2 * kTableSize;
        const __m256i low = _mm256_shuffle_epi8(load_table(planes), column.angle);
        const __m256i high = _mm256_shuffle_epi8(load_table(planes + kTableSize), column.angle);
        const __m256i products[2] = {_mm256_unpacklo_epi8(low, high),
                                     _mm256_unpackhi_epi8(low, high)};
        for (int half = 0; half < 2; ++half) {
          words[component][half] = _mm256_add_epi16(
              words[component][half], _mm256_mulhrs_epi16(products[half], column.radii[half]));
        }
      }
    }
    const __m256i even = _mm256_set1_epi32(1), odd = _mm256_set1_epi32(1 << 16);
    for (int component = 0; component < 2; ++component) {
      for (int half = 0; half < 2; ++half) {
        __m256i* total = totals[component] + 2 * half;
        total[0] = _mm256_add_epi32(total[0], _mm256_madd_epi16(words[component][half], even));
        total[1] = _mm256_add_epi32(total[1], _mm256_madd_epi16(words[component][half], odd));
      }
    }
  }

  Index cols_;
  CodeTiles tiles_;
  Tables tables_;
  float unit_;
  ProductTable turns_;
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
  const double codes = static_cast<double>(matrix.rows) * static_cast<double>(matrix.cols);
  const int team = step_threads(threads, kNanosecondsPerCode * codes);
  multiply_panels(RingProduct(matrix, x, team), matrix, team, y);
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

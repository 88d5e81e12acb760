// Ring products: 16 rings of 16 phases, odd rings turned by half a phase, so that a code is
// 16 · ring + phase and its point is radius[ring] · exp(2 pi i u / 32), u = 2 · phase + ring mod 2.
//
// 1. Per column, the products of x with exp(2 pi i u / 32) for u < 16 in fixed point; the other
//    sixteen are their negatives.
// 2. Per panel of 32 rows and block of 16 columns: radii with that sign are looked up in registers
//    and paired for neighbouring columns; then the products are looked up and both multiplied and
//    added to 32 bits, which 16 columns cannot overflow.
// 3. Per block the sums become float32.
#include "coded_product.hpp"

#if defined(__AVX2__)

#include <numbers>

#include "code_tile.hpp"
#include "parallel.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRings = 16, kPhases = 16;
constexpr Index kBlock = 16;                  // columns whose sums fit 32 bits
constexpr std::int32_t kMostProduct = 16383;  // kBlock · kMostProduct · kMostRadius < 2^31
constexpr std::int32_t kMostRadius = 8191;
constexpr double kNanosecondsPerByte = 0.6;

using Tables = FixedPointTables<2, kBlock>;

// Byte planes of the radii of all rings, for phases below 8 and with the sign of those above.
struct RadiusTables {
  alignas(16) std::uint8_t positive[2][kRings];
  alignas(16) std::uint8_t negative[2][kRings];
};

// What the codes of a block say, in the order in which the products need it.
struct BlockIndex {
  __m256i angle[kBlock];         // u of 32 rows, of which the low four bits count
  __m256i radii[kBlock / 2][4];  // of two columns, alternating; eight rows per register
};

class RingProduct {
 public:
  RingProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : matrix_(matrix), tiles_(ceil_div(matrix.cols, kTileBytes)), tables_(tiles_ * kTileBytes) {
    tabulate_radii();
    for (Index u = 0; u < kTableSize; ++u) {
      const double angle = 2.0 * std::numbers::pi * static_cast<double>(u) / (2 * kPhases);
      turns_.real[u] = static_cast<float>(std::cos(angle));
      turns_.imag[u] = static_cast<float>(std::sin(angle));
    }
    parallel_for(tiles_, threads, [&](Index tile) {
      constexpr Index kBlocks = kTileBytes / kBlock;
      for (Index block = tile * kBlocks; block < (tile + 1) * kBlocks; ++block) {
        fill_block(block, x);
      }
    });
  }

  // y of the rows [first_row, first_row + 32 panels).
  void multiply_panels(Index first_row, Index panels, VectorSpan y) const {
    PanelSums sums[kPanelsPerItem] = {};
    CodeTile tile;
    for (Index t = 0; t < tiles_; ++t) {
      for (Index panel = 0; panel < panels; ++panel) {
        tile.load(matrix_.packed, matrix_.rows, matrix_.cols, first_row + panel * kTileRows,
                  t * kTileBytes);
        add_tile(tile, t, sums[panel]);
      }
    }
    for (Index panel = 0; panel < panels; ++panel) {
      store_panel(sums[panel], unit_, matrix_, first_row + panel * kTileRows, y);
    }
  }

 private:
  void tabulate_radii() {
    const auto& rings = matrix_.constellation->rings;
    unit_ = rings.back().radius / static_cast<float>(kMostRadius);
    for (Index ring = 0; ring < kRings; ++ring) {
      const auto radius = static_cast<std::int32_t>(std::nearbyint(rings[ring].radius / unit_));
      for (int b = 0; b < 2; ++b) {
        radii_.positive[b][ring] = static_cast<std::uint8_t>(radius >> (8 * b));
        radii_.negative[b][ring] = static_cast<std::uint8_t>(-radius >> (8 * b));
      }
    }
  }

  void fill_block(Index block, VectorView x) {
    const Index first = block * kBlock, end = std::min(matrix_.cols, first + kBlock);
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

  void add_tile(const CodeTile& tile, Index t, PanelSums& sums) const {
    BlockIndex index;
    for (Index b = 0; b < kTileBytes; b += kBlock) {
      read_codes(tile, b, index);
      const Index column = t * kTileBytes + b;
      const __m256 step = _mm256_set1_ps(tables_.step(column / kBlock));
      add_block(index, column, 0, step, sums[0]);
      add_block(index, column, 1, step, sums[1]);
    }
  }

  void read_codes(const CodeTile& tile, Index first, BlockIndex& index) const {
    const __m256i low_nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi8(1);
    for (Index b = 0; b < kBlock; b += 2) {
      __m256i words[2][2];  // signed radii of a column: rows {0-7, 16-23} and {8-15, 24-31}
      for (Index c = 0; c < 2; ++c) {
        const __m256i codes = tile.column(first + b + c);
        const __m256i ring = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low_nibble);
        const __m256i phase = _mm256_and_si256(codes, low_nibble);
        index.angle[b + c] =
            _mm256_add_epi8(_mm256_add_epi8(phase, phase), _mm256_and_si256(ring, one));
        const __m256i upper_half = _mm256_slli_epi16(codes, 4);  // bit 3 of the phase on top
        const auto lookup = [&](int byte) {
          return _mm256_blendv_epi8(_mm256_shuffle_epi8(load_table(radii_.positive[byte]), ring),
                                    _mm256_shuffle_epi8(load_table(radii_.negative[byte]), ring),
                                    upper_half);
        };
        const __m256i low = lookup(0), high = lookup(1);
        words[c][0] = _mm256_unpacklo_epi8(low, high);
        words[c][1] = _mm256_unpackhi_epi8(low, high);
      }
      for (int half = 0; half < 2; ++half) {
        index.radii[b / 2][2 * half] = _mm256_unpacklo_epi16(words[0][half], words[1][half]);
        index.radii[b / 2][2 * half + 1] = _mm256_unpackhi_epi16(words[0][half], words[1][half]);
      }
    }
  }

  void add_block(const BlockIndex& index, Index first_column, int component, __m256 step,
                 __m256 (&sums)[4]) const {
    __m256i totals[4] = {};
    for (Index b = 0; b < kBlock; b += 2) {
      __m256i words[2][2];
      for (Index c = 0; c < 2; ++c) {
        const std::uint8_t* table =
            tables_.group(first_column + b + c) + component * 2 * kTableSize;
        const __m256i low = _mm256_shuffle_epi8(load_table(table), index.angle[b + c]);
        const __m256i high =
            _mm256_shuffle_epi8(load_table(table + kTableSize), index.angle[b + c]);
        words[c][0] = _mm256_unpacklo_epi8(low, high);
        words[c][1] = _mm256_unpackhi_epi8(low, high);
      }
      for (int i = 0; i < 4; ++i) {
        const __m256i pairs = i % 2 == 0 ? _mm256_unpacklo_epi16(words[0][i / 2], words[1][i / 2])
                                         : _mm256_unpackhi_epi16(words[0][i / 2], words[1][i / 2]);
        totals[i] = _mm256_add_epi32(totals[i], _mm256_madd_epi16(pairs, index.radii[b / 2][i]));
      }
    }
    for (int i = 0; i < 4; ++i) {
      sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[i]), step, sums[i]);
    }
  }

  const CodedMatrix& matrix_;
  Index tiles_;
  Tables tables_;
  RadiusTables radii_;
  ProductTable turns_;
  float unit_ = 0;  // value of the last bit of a radius
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
  const int team = step_threads(threads, kNanosecondsPerByte * codes);
  const RingProduct product(matrix, x, team);
  for_panels(matrix.rows, team,
             [&](Index first_row, Index panels) { product.multiply_panels(first_row, panels, y); });
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

// Nibble products: codes of up to four bits, so that four bits hold the codes of one column or of
// several, and the sum of their products with x is one of sixteen values.
//
// 1. Per nibble position, these sixteen values in fixed point (FixedPointTables), as bytes.
// 2. Per panel of 32 rows and tile of 64 bytes: every nibble looks up its value, byte by byte, by
//    in-register permutes; two nibbles' bytes are added to 16 bits, which 64 pairs cannot overflow.
// 3. Per tile the sums of bytes are put together and become float32.
#include "coded_product.hpp"

#if defined(__AVX2__)

#include "code_tile.hpp"
#include "parallel.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kTileNibbles = 2 * kTileBytes;
constexpr double kNanosecondsPerByte = 0.4;

// How a matrix is read as nibbles.
struct NibbleLayout {
  explicit NibbleLayout(const CodedMatrix& matrix)
      : code_bits(matrix.constellation->code_bits),
        columns(code_bits == 3 ? 1 : 4 / code_bits),
        row_bytes(packed_row_bytes(matrix.cols, code_bits)),
        tile_bytes(code_bits == 3 ? kTileBytes * 3 / 4 : kTileBytes),
        tiles(ceil_div(row_bytes, tile_bytes)) {}

  int code_bits;
  Index columns;  // of one nibble
  Index row_bytes;
  Index tile_bytes;  // stored bytes of one tile's row
  Index tiles;
};

template <int kBytes>
class NibbleProduct {
 public:
  using Tables = FixedPointTables<kBytes, kTileNibbles>;
  static constexpr std::int32_t kBias = 1 << (8 * kBytes - 1);

  NibbleProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : matrix_(matrix), layout_(matrix), tables_(layout_.tiles * kTileNibbles) {
    expand_points();
    parallel_for(layout_.tiles, threads, [&](Index tile) { fill_tile(tile, x); });
  }

  // y of the rows [first_row, first_row + 32).
  void multiply_panel(Index first_row, VectorSpan y) const {
    PanelSums sums = {};
    CodeTile tile;
    for (Index t = 0; t < layout_.tiles; ++t) {
      const auto load = layout_.code_bits == 3 ? &CodeTile::load_three_bit : &CodeTile::load;
      (tile.*load)(matrix_.packed, matrix_.rows, layout_.row_bytes, first_row,
                   t * layout_.tile_bytes);
      add_tile(tile, t, sums);
    }
    store_panel(sums, 1.0f, matrix_, first_row, y);
  }

 private:
  // points_[j] holds the point of the j-th code in every nibble.
  void expand_points() {
    const Constellation& points = *matrix_.constellation;
    const int mask = (1 << layout_.code_bits) - 1;
    for (Index j = 0; j < layout_.columns; ++j) {
      for (int nibble = 0; nibble < kTableSize; ++nibble) {
        const int code = (nibble >> (j * layout_.code_bits)) & mask;
        points_[j].real[nibble] = points.point_real[code];
        points_[j].imag[nibble] = points.point_imag[code];
      }
    }
    largest_point_ = points.rings.back().radius;
  }

  float at(const float* plane, Index column) const {
    return column < matrix_.cols ? plane[column] : 0.0f;
  }

  void fill_tile(Index tile, VectorView x) {
    float bound = 0;
    for (Index g = tile * kTileNibbles; g < (tile + 1) * kTileNibbles; ++g) {
      float magnitude = 0;
      for (Index l = g * layout_.columns; l < (g + 1) * layout_.columns; ++l) {
        const float re = at(x.real, l), im = at(x.imag, l);
        magnitude += std::sqrt(re * re + im * im);
      }
      bound = std::max(bound, magnitude * largest_point_);
    }
    tables_.fill(tile, bound, kBias - 1, kBias, [&](Index g, ProductTable& table) {
      __m256 real[2] = {}, imag[2] = {};
      for (Index j = 0; j < layout_.columns; ++j) {
        const __m256 re = _mm256_set1_ps(at(x.real, g * layout_.columns + j));
        const __m256 im = _mm256_set1_ps(at(x.imag, g * layout_.columns + j));
        for (int half = 0; half < 2; ++half) {
          const __m256 point_real = _mm256_load_ps(points_[j].real + 8 * half);
          const __m256 point_imag = _mm256_load_ps(points_[j].imag + 8 * half);
          real[half] = _mm256_fmadd_ps(point_real, re, real[half]);
          real[half] = _mm256_fnmadd_ps(point_imag, im, real[half]);
          imag[half] = _mm256_fmadd_ps(point_real, im, imag[half]);
          imag[half] = _mm256_fmadd_ps(point_imag, re, imag[half]);
        }
      }
      for (int half = 0; half < 2; ++half) {
        _mm256_store_ps(table.real + 8 * half, real[half]);
        _mm256_store_ps(table.imag + 8 * half, imag[half]);
      }
    });
  }

  void add_tile(const CodeTile& tile, Index t, PanelSums& sums) const {
    constexpr int kPlanes = 2 * kBytes;
    const __m256i low_nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi8(1);
    // Sums of bytes: rows 0 to 7 and 16 to 23 in one register, the others in the next.
    __m256i even[kPlanes] = {}, odd[kPlanes] = {};
    const std::uint8_t* table = tables_.group(t * kTileNibbles);
    for (Index b = 0; b < kTileBytes; ++b, table += 2 * Tables::kGroupBytes) {
      const __m256i codes = tile.column(b);
      const __m256i low = _mm256_and_si256(codes, low_nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low_nibble);
      for (int p = 0; p < kPlanes; ++p) {
        const __m256i first = _mm256_shuffle_epi8(load_table(table + p * kTableSize), low);
        const __m256i second =
            _mm256_shuffle_epi8(load_table(table + Tables::kGroupBytes + p * kTableSize), high);
        even[p] = _mm256_add_epi16(even[p],
                                   _mm256_maddubs_epi16(_mm256_unpacklo_epi8(first, second), ones));
        odd[p] = _mm256_add_epi16(odd[p],
                                  _mm256_maddubs_epi16(_mm256_unpackhi_epi8(first, second), ones));
      }
    }
    const __m256 step = _mm256_set1_ps(tables_.step(t));
    for (int component = 0; component < 2; ++component) {
      __m256i parts[4] = {};
      for (int b = kBytes - 1; b >= 0; --b) {
        const int p = component * kBytes + b;
        const __m256i zero = _mm256_setzero_si256();
        const __m256i widened[4] = {
            _mm256_unpacklo_epi16(even[p], zero), _mm256_unpackhi_epi16(even[p], zero),
            _mm256_unpacklo_epi16(odd[p], zero), _mm256_unpackhi_epi16(odd[p], zero)};
        for (int i = 0; i < 4; ++i) {
          parts[i] = _mm256_add_epi32(_mm256_slli_epi32(parts[i], 8), widened[i]);
        }
      }
      const __m256i bias = _mm256_set1_epi32(static_cast<std::int32_t>(kTileNibbles) * kBias);
      for (int i = 0; i < 4; ++i) {
        const __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(parts[i], bias));
        sums[component][i] = _mm256_fmadd_ps(value, step, sums[component][i]);
      }
    }
  }

  const CodedMatrix& matrix_;
  NibbleLayout layout_;
  ProductTable points_[4] = {};
  float largest_point_ = 0;
  Tables tables_;
};

template <int kBytes>
void multiply(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const NibbleProduct<kBytes> product(matrix, x, threads);
  parallel_for(ceil_div(matrix.rows, kTileRows), threads,
               [&](Index panel) { product.multiply_panel(panel * kTileRows, y); });
}

}  // namespace

bool nibble_products_apply(const CodedMatrix& matrix) {
  return matrix.constellation != nullptr && matrix.constellation->code_bits <= 4;
}

void multiply_nibbles(const CodedMatrix& matrix, VectorView x, Precision precision, int threads,
                      VectorSpan y) {
  const Index bytes = matrix.rows * packed_row_bytes(matrix.cols, matrix.constellation->code_bits);
  const int team = step_threads(threads, kNanosecondsPerByte * static_cast<double>(bytes));
  if (precision == Precision::half) {
    multiply<2>(matrix, x, team, y);
  } else {
    multiply<3>(matrix, x, team, y);
  }
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

// Table products: codes of up to six bits. The products of all points with an entry of x are few
// enough to be looked up in registers.
//
// 1. Codes are read in fields: half bytes for codes of up to four bits, where one field may hold
//    those of several columns and stands for the sum of their products; bytes for five and six.
//    Per field, its 16, 32 or 64 possible values in fixed point (FixedPointTables).
// 2. Per panel of 32 rows and tile of 64 bytes: every field looks up its value, byte by byte, by
//    in-register permutes; the bytes of two fields are added to 16 bits, which 64 pairs cannot
//    overflow.
// 3. Per tile the sums of bytes are put together and become float32.
#include "coded_product.hpp"

#if defined(__AVX2__)

#include "code_tile.hpp"
#include "parallel.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kMostColumns = 4;  // of one field
constexpr Index kMostTables = 4;
constexpr double kNanosecondsPerField = 0.3;

// How a matrix is read in fields.
struct FieldLayout {
  explicit FieldLayout(const CodedMatrix& matrix)
      : code_bits(matrix.constellation->code_bits),
        field_bits(code_bits <= 4 ? 4 : 8),
        columns(code_bits <= 4 && code_bits != 3 ? 4 / code_bits : 1),
        tile_bytes(kTileBytes * columns * code_bits / field_bits),
        row_bytes(packed_row_bytes(matrix.cols, code_bits)),
        tiles(ceil_div(row_bytes, tile_bytes)),
        widening(code_bits, field_bits) {}

  int code_bits;
  int field_bits;
  Index columns;     // of one field
  Index tile_bytes;  // stored bytes of one tile's row
  Index row_bytes;
  Index tiles;
  FieldWidening widening;
};

// Sums over fields of values of kBytes bytes each, for the real and the imaginary part.
template <int kBytes>
class ByteSums {
 public:
  // Adds byte plane p of two fields' values.
  void add(int p, __m256i first, __m256i second) {
    const __m256i ones = _mm256_set1_epi8(1);
    even_[p] =
        _mm256_add_epi16(even_[p], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(first, second), ones));
    odd_[p] =
        _mm256_add_epi16(odd_[p], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(first, second), ones));
  }

  // sums += step · (values - bias), `bias` being that of all values together.
  void finish(float step, std::int32_t bias, PanelSums& sums) const {
    const __m256i zero = _mm256_setzero_si256();
    for (int component = 0; component < 2; ++component) {
      __m256i parts[4] = {};
      for (int p = (component + 1) * kBytes - 1; p >= component * kBytes; --p) {
        const __m256i widened[4] = {
            _mm256_unpacklo_epi16(even_[p], zero), _mm256_unpackhi_epi16(even_[p], zero),
            _mm256_unpacklo_epi16(odd_[p], zero), _mm256_unpackhi_epi16(odd_[p], zero)};
        for (int i = 0; i < 4; ++i) {
          parts[i] = _mm256_add_epi32(_mm256_slli_epi32(parts[i], 8), widened[i]);
        }
      }
      for (int i = 0; i < 4; ++i) {
        const __m256i value = _mm256_sub_epi32(parts[i], _mm256_set1_epi32(bias));
        sums[component][i] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(value), _mm256_set1_ps(step), sums[component][i]);
      }
    }
  }

 private:
  // 16-bit sums: rows 0 to 7 and 16 to 23 in one register, the others in the next.
  __m256i even_[2 * kBytes] = {}, odd_[2 * kBytes] = {};
};

// kTables tables of sixteen values per field: more than one for fields of bytes.
template <int kBytes, int kTables>
class TableProduct {
 public:
  static constexpr Index kTileFields = kTables == 1 ? 2 * kTileBytes : kTileBytes;
  using Tables = FixedPointTables<kBytes, kTileFields * kTables>;
  static constexpr Index kFieldBytes = kTables * Tables::kGroupBytes;
  static constexpr std::int32_t kBias = 1 << (8 * kBytes - 1);
  // Rounding in float32 may carry a value a little beyond this, but not beyond its bytes.
  static constexpr std::int32_t kLargest = kBias - 1 - (kBias >> 16);

  TableProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : matrix_(matrix),
        layout_(matrix),
        largest_point_(matrix.constellation->rings.back().radius),
        tables_(layout_.tiles * kTileFields * kTables) {
    expand_points();
    parallel_for(layout_.tiles, threads, [&](Index tile) { fill_tile(tile, x); });
  }

  // y of the rows [first_row, first_row + 32 panels).
  void multiply_panels(Index first_row, Index panels, VectorSpan y) const {
    PanelSums sums[kPanelsPerItem] = {};
    CodeTile tile;
    for (Index t = 0; t < layout_.tiles; ++t) {
      for (Index panel = 0; panel < panels; ++panel) {
        load(tile, first_row + panel * kTileRows, t);
        add_tile(tile, t, sums[panel]);
      }
    }
    for (Index panel = 0; panel < panels; ++panel) {
      store_panel(sums[panel], 1.0f, matrix_, first_row + panel * kTileRows, y);
    }
  }

 private:
  // points_[j] holds the point of the j-th code in every field; with more than one table, the
  // points of the codes from 16 j on.
  void expand_points() {
    const Constellation& points = *matrix_.constellation;
    const int last = (1 << layout_.code_bits) - 1;
    for (Index j = 0; j < (kTables == 1 ? layout_.columns : kTables); ++j) {
      for (Index value = 0; value < kTableSize; ++value) {
        const Index code = kTables == 1 ? (value >> (j * layout_.code_bits)) & last
                                        : std::min<Index>(j * kTableSize + value, last);
        points_[j].real[value] = points.point_real[code];
        points_[j].imag[value] = points.point_imag[code];
      }
    }
  }

  float at(const float* plane, Index column) const {
    return column < matrix_.cols ? plane[column] : 0.0f;
  }

  void fill_tile(Index tile, VectorView x) {
    float bound = 0;
    for (Index field = tile * kTileFields; field < (tile + 1) * kTileFields; ++field) {
      float magnitude = 0;
      for (Index l = field * layout_.columns; l < (field + 1) * layout_.columns; ++l) {
        const float re = at(x.real, l), im = at(x.imag, l);
        magnitude += std::sqrt(re * re + im * im);
      }
      bound = std::max(bound, magnitude * largest_point_);
    }
    tables_.fill(tile, bound, kLargest, kBias, [&](Index group, ProductTable& table) {
      const Index first_column = group / kTables * layout_.columns;
      __m256 real[2] = {}, imag[2] = {};
      for (Index j = 0; j < layout_.columns; ++j) {
        const ProductTable& points = points_[kTables == 1 ? j : group % kTables];
        const __m256 re = _mm256_set1_ps(at(x.real, first_column + j));
        const __m256 im = _mm256_set1_ps(at(x.imag, first_column + j));
        for (int half = 0; half < 2; ++half) {
          const __m256 point_real = _mm256_load_ps(points.real + 8 * half);
          const __m256 point_imag = _mm256_load_ps(points.imag + 8 * half);
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

  void load(CodeTile& tile, Index first_row, Index t) const {
    const Index first_byte = t * layout_.tile_bytes;
    if (layout_.tile_bytes == kTileBytes) {
      tile.load(matrix_.packed, matrix_.rows, layout_.row_bytes, first_row, first_byte);
    } else {
      tile.load_widened(matrix_.packed, matrix_.rows, layout_.row_bytes, first_row, first_byte,
                        layout_.widening);
    }
  }

  void add_tile(const CodeTile& tile, Index t, PanelSums& sums) const {
    ByteSums<kBytes> bytes;
    const std::uint8_t* tables = tables_.group(t * kTileFields * kTables);
    if constexpr (kTables == 1) {
      const __m256i low_nibble = _mm256_set1_epi8(15);
      for (Index b = 0; b < kTileBytes; ++b, tables += 2 * kFieldBytes) {
        const __m256i codes = tile.column(b);
        const __m256i low = _mm256_and_si256(codes, low_nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low_nibble);
        for (int p = 0; p < 2 * kBytes; ++p) {
          bytes.add(p, look_up(tables, p, low), look_up(tables + kFieldBytes, p, high));
        }
      }
    } else {
      for (Index b = 0; b < kTileBytes; b += 2, tables += 2 * kFieldBytes) {
        const __m256i first = tile.column(b), second = tile.column(b + 1);
        for (int p = 0; p < 2 * kBytes; ++p) {
          bytes.add(p, look_up(tables, p, first), look_up(tables + kFieldBytes, p, second));
        }
      }
    }
    bytes.finish(tables_.step(t), static_cast<std::int32_t>(kTileFields) * kBias, sums);
  }

  // Byte p of the values of 32 fields, each below 16 · kTables.
  static __m256i look_up(const std::uint8_t* tables, int p, __m256i fields) {
    const auto in_table = [&](Index j) {  // by the low four bits
      const std::uint8_t* table = tables + j * Tables::kGroupBytes + p * kTableSize;
      return _mm256_shuffle_epi8(load_table(table), fields);
    };
    if constexpr (kTables == 1) return in_table(0);
    const __m256i fifth_bit = _mm256_slli_epi16(fields, 3);  // on top of each byte
    const __m256i lower = _mm256_blendv_epi8(in_table(0), in_table(1), fifth_bit);
    if constexpr (kTables == 2) return lower;
    const __m256i upper = _mm256_blendv_epi8(in_table(2), in_table(3), fifth_bit);
    return _mm256_blendv_epi8(lower, upper, _mm256_slli_epi16(fields, 2));
  }

  const CodedMatrix& matrix_;
  FieldLayout layout_;
  ProductTable points_[std::max(kMostColumns, kMostTables)] = {};
  float largest_point_;
  Tables tables_;
};

template <int kBytes, int kTables>
void multiply(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const TableProduct<kBytes, kTables> product(matrix, x, threads);
  for_panels(matrix.rows, threads,
             [&](Index first_row, Index panels) { product.multiply_panels(first_row, panels, y); });
}

template <int kBytes>
void multiply(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  switch (matrix.constellation->code_bits) {
    case 5: return multiply<kBytes, 2>(matrix, x, threads, y);
    case 6: return multiply<kBytes, 4>(matrix, x, threads, y);
    default: return multiply<kBytes, 1>(matrix, x, threads, y);
  }
}

}  // namespace

bool table_products_apply(const CodedMatrix& matrix) {
  return matrix.constellation != nullptr && matrix.constellation->code_bits <= 6;
}

void multiply_by_tables(const CodedMatrix& matrix, VectorView x, Precision precision, int threads,
                        VectorSpan y) {
  const double fields =
      double(matrix.rows) * double(matrix.cols) / double(FieldLayout(matrix).columns);
  const int team = step_threads(threads, kNanosecondsPerField * fields);
  if (precision == Precision::half) {
    multiply<2>(matrix, x, team, y);
  } else {
    multiply<3>(matrix, x, team, y);
  }
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

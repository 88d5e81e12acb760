// Table products: codes of up to six bits. The products of all points with an entry of x are few
// enough to be looked up in registers.
//
// 1. Codes are read in fields: half bytes for codes of one, two and four bits, where one field may
//    hold those of several columns and stands for the sum of their products; else one code each.
//    Per field, its 16, 32 or 64 possible values in fixed point (FixedPointTables), 7 bits per
//    plane: two values add up within a byte.
// 2. Per register of rows and tile of up to 128 fields: every field looks up its value, plane by
//    plane, by in-register permutes; sums of two are added to 16 bits, which a tile cannot
//    overflow.
// 3. Per tile the sums of planes are put together and become float32.
#include "coded_product.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include "parallel.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr int kPlaneBits = 7;
constexpr double kNanosecondsPerField = 0.05;

// How codes of kBits bits are read in fields. The smallest number of bytes that ends with a field's
// end holds a group of them.
template <int kBits>
struct Fields {
  static constexpr int kFieldBits = kBits <= 2 ? 4 : kBits;
  static constexpr Index kColumns = kFieldBits / kBits;  // of one field
  static constexpr Index kTables = kBits <= 4 ? 1 : Index{1} << (kBits - 4);
  static constexpr Index kGroupBytes = kFieldBits % 2 != 0 ? kFieldBits : kFieldBits / 2;
  static constexpr Index kGroupFields = 8 * kGroupBytes / kFieldBits;
  static constexpr Index kTileFields = 128 / kTables;  // whose tables fit the first cache
  static constexpr Index kTileBytes = kTileFields / kGroupFields * kGroupBytes;
  static_assert(kGroupFields % 4 == 0 && kTileBytes <= kMostTileBytes);
};

// Looks up a register of fields in one, two or four tables of sixteen bytes.
template <Index kTables>
class Selector {
 public:
  Selector() = default;
  // A table gives zero for the fields of the others: adding up is cheaper than choosing.
  explicit Selector(Register fields) {
    index_[0] = fields;
    if constexpr (kTables > 1) {
      for (Index j = 0; j < kTables; ++j) index_[j] = table_index(fields, j);
    }
  }

  // Tables lie `stride` bytes apart.
  Register look_up(const std::uint8_t* tables, Index stride) const {
    Register sum = table_entries(load_table(tables), index_[0]);
    for (Index j = 1; j < kTables; ++j) {
      sum = add8(sum, table_entries(load_table(tables + j * stride), index_[j]));
    }
    return sum;
  }

 private:
  Register index_[kTables];
};

// Sums over fields of values of kPlanes planes each, for the real and the imaginary part.
template <int kPlanes>
class PlaneSums {
 public:
  // Lanes of finish: rows 0, 2, 4, 6, 16, ...; 8, 10, ...; 1, 3, ...; 9, 11, ...
  static constexpr RowOrder kOrder =
      order_by_sixteen([](Index part) { return 8 * (part % 2) + part / 2; }, 2);

  // Adds the sums of some fields, one byte per row each, to plane p.
  template <std::size_t kSums>
  void add(int p, const Register (&sums)[kSums]) {
    Register words = sums[0], odd = shift_right16(sums[0], 8);
    for (std::size_t i = 1; i < kSums; ++i) {
      words = add16(words, sums[i]);
      odd = add16(odd, shift_right16(sums[i], 8));
    }
    words_[p] = add16(words_[p], words);
    odd_[p] = add16(odd_[p], odd);
  }

  // sums += step · (values - bias), `bias` being that of all values together.
  void finish(float step, std::int32_t bias, RowSums& sums) const {
    for (int component = 0; component < 2; ++component) {
      Register even[kPlanes], odd[kPlanes];
      for (int p = 0; p < kPlanes; ++p) {
        odd[p] = odd_[component * kPlanes + p];
        even[p] = sub16(words_[component * kPlanes + p], shift_left16(odd[p], 8));
      }
      accumulate(even, step, bias, sums[component]);
      accumulate(odd, step, bias, sums[component] + 2);
    }
  }

 private:
  static void accumulate(const Register (&planes)[kPlanes], float step, std::int32_t bias,
                         Floats* sums) {
    const Register weights = all32((1 << (16 + kPlaneBits)) | 1);
    Register values[2] = {pair_sums16(interleave_low16(planes[0], planes[1]), weights),
                          pair_sums16(interleave_high16(planes[0], planes[1]), weights)};
    if constexpr (kPlanes == 3) {
      const Register zero = all8(0);
      const Register top[2] = {interleave_low16(planes[2], zero),
                               interleave_high16(planes[2], zero)};
      for (int i = 0; i < 2; ++i) {
        values[i] = add32(values[i], shift_left32(top[i], 2 * kPlaneBits));
      }
    }
    for (int i = 0; i < 2; ++i) {
      const Floats value = to_float(sub32(values[i], all32(bias)));
      sums[i] = multiply_add(value, all_floats(step), sums[i]);
    }
  }

  Register words_[2 * kPlanes] = {};  // sums of words: those of even rows, modulo 2^16
  Register odd_[2 * kPlanes] = {};    // sums of odd rows
};

template <int kBits, int kPlanes>
class TableProduct {
 public:
  static constexpr const RowOrder& kOrder = PlaneSums<kPlanes>::kOrder;

  TableProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : matrix_(matrix),
        tiles_(matrix, Layout::kTileBytes),
        largest_point_(matrix.constellation->rings.back().radius),
        tables_(tiles_.count() * Layout::kTileFields * Layout::kTables) {
    expand_points();
    parallel_for(tiles_.count(), threads, [&](Index tile) { fill_tile(tile, x); });
  }

  const CodeTiles& tiles() const { return tiles_; }
  float factor() const { return 1.0f; }

  void add_tile(const std::uint8_t* codes, Index tile, RowSums& sums) const {
    PlaneSums<kPlanes> planes;
    const std::uint8_t* tables = tables_.group(tile * Layout::kTileFields * Layout::kTables);
    for (Index b = 0; b < Layout::kTileBytes; b += Layout::kGroupBytes) {
      Register bytes[Layout::kGroupBytes];
      for (Index i = 0; i < Layout::kGroupBytes; ++i) {
        prefetch_codes(codes + (b + i) * kPanelRows);
        bytes[i] = load_bytes(codes + (b + i) * kPanelRows);
      }
#pragma GCC unroll 8
      for (Index i = 0; i < Layout::kGroupFields; i += kAtOnce, tables += kAtOnce * kFieldBytes) {
        Selected fields[kAtOnce];
        for (Index j = 0; j < kAtOnce; ++j)
          fields[j] = Selected(bit_field<Layout::kFieldBits>(bytes, i + j));
        add_fields(fields, tables, planes);
      }
    }
    planes.finish(tables_.step(tile), static_cast<std::int32_t>(Layout::kTileFields) * kBias, sums);
  }

 private:
  using Layout = Fields<kBits>;
  using Selected = Selector<Layout::kTables>;
  // Fields that are looked up together: as many as leave registers for the sums.
  static constexpr Index kAtOnce = Layout::kTables == 4 ? 2 : 4;
  using Tables = FixedPointTables<kPlanes, kPlaneBits, Layout::kTileFields * Layout::kTables>;
  static constexpr Index kTileColumns = Layout::kTileFields * Layout::kColumns;
  static constexpr Index kFieldBytes = Layout::kTables * Tables::kGroupBytes;
  static constexpr std::int32_t kBias = 1 << (kPlaneBits * kPlanes - 1);
  // Rounding in float32 may carry a value a little beyond this, but not beyond its bits.
  static constexpr std::int32_t kLargest = kBias - 1 - (kBias >> 16);

  // points_[j] holds the point of the j-th code in every field; with more than one table, the
  // points of the codes from 16 j on.
  void expand_points() {
    const Constellation& points = *matrix_.constellation;
    constexpr Index kLast = (Index{1} << kBits) - 1;
    for (Index j = 0; j < kPointTables; ++j) {
      for (Index value = 0; value < kTableSize; ++value) {
        const Index code = Layout::kTables == 1 ? (value >> (j * kBits)) & kLast
                                                : std::min<Index>(j * kTableSize + value, kLast);
        points_[j].real[value] = points.point_real[code];
        points_[j].imag[value] = points.point_imag[code];
      }
    }
  }

  void fill_tile(Index tile, VectorView x) {
    const Entries<kTileColumns> entries(x, tile * kTileColumns, matrix_.cols);
    float magnitudes[kTileColumns];
    for (Index l = 0; l < kTileColumns; ++l) {
      const float re = entries.real[l], im = entries.imag[l];
      magnitudes[l] = std::sqrt(re * re + im * im);
    }
    float bound = 0;
    for (Index first = 0; first < kTileColumns; first += Layout::kColumns) {
      float sum = 0;
      for (Index j = 0; j < Layout::kColumns; ++j) sum += magnitudes[first + j];
      bound = std::max(bound, sum * largest_point_);
    }
    const Index first_group = tile * Layout::kTileFields * Layout::kTables;
    tables_.fill(tile, bound, kLargest, kBias, [&](Index group) {
      const Index first = (group - first_group) / Layout::kTables * Layout::kColumns;
      Products products(0.0f);
      for (Index j = 0; j < Layout::kColumns; ++j) {
        products.add(points_[Layout::kTables == 1 ? j : group % Layout::kTables],
                     entries.real[first + j], entries.imag[first + j]);
      }
      return products;
    });
  }

  // Adds the values of a few fields.
  static void add_fields(const Selected (&fields)[kAtOnce], const std::uint8_t* tables,
                         PlaneSums<kPlanes>& planes) {
#pragma GCC unroll 6
    for (int p = 0; p < 2 * kPlanes; ++p) {
      Register sums[kAtOnce / 2];
      for (Index j = 0; j < kAtOnce; j += 2) {
        const std::uint8_t* plane = tables + j * kFieldBytes + p * kTableSize;
        sums[j / 2] = add8(fields[j].look_up(plane, Tables::kGroupBytes),
                           fields[j + 1].look_up(plane + kFieldBytes, Tables::kGroupBytes));
      }
      planes.add(p, sums);
    }
  }

  static constexpr Index kPointTables = Layout::kTables == 1 ? Layout::kColumns : Layout::kTables;

  const CodedMatrix& matrix_;
  CodeTiles tiles_;
  ProductTable points_[kPointTables] = {};
  float largest_point_;
  Tables tables_;
};

template <int kPlanes>
void multiply(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const auto with_bits = [&]<int kBits>() {
    const TableProduct<kBits, kPlanes> product(matrix, x, threads);
    multiply_panels(product, matrix, x, threads, y);
  };
  switch (matrix.constellation->code_bits) {
    case 1: return with_bits.template operator()<1>();
    case 2: return with_bits.template operator()<2>();
    case 3: return with_bits.template operator()<3>();
    case 4: return with_bits.template operator()<4>();
    case 5: return with_bits.template operator()<5>();
    default: return with_bits.template operator()<6>();
  }
}

}  // namespace

bool table_products_apply(const CodedMatrix& matrix) {
  return matrix.constellation != nullptr && matrix.constellation->code_bits <= 6;
}

void multiply_by_tables(const CodedMatrix& matrix, VectorView x, Precision precision, int threads,
                        VectorSpan y) {
  const int team = product_threads(matrix, threads, kNanosecondsPerField);
  if (precision == Precision::half) {
    multiply<2>(matrix, x, team, y);
  } else {
    multiply<3>(matrix, x, team, y);
  }
}

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

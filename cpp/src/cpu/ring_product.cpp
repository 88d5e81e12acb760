// Ring products: 16 rings of 16 phases (ring_codes.hpp).
//
// At half precision:
// 1. Per column, the products of x with the sixteen exp(πiu / 16) in fixed point.
// 2. Per column and register of rows: signed radii and products are looked up in registers,
//    multiplied and rounded to words, which a block of 16 columns cannot overflow.
// 3. Per block the sums become float32.
// At single precision radii and products are float32, looked up byte by byte.
#include "coded_product.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <array>
#include <memory>

#include "float_tables.hpp"
#include "parallel.hpp"
#include "ring_codes.hpp"
#include "word_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr std::int32_t kMostRadius = 32767;  // to be divided by 2^15
constexpr double kNanosecondsPerCode = 0.09;

class WordRingProduct {
 public:
  static constexpr const RowOrder& kOrder = kWordOrder;

  WordRingProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : tiles_(matrix, WordTables::kTileColumns),
        tables_(unit_points(), /*largest=*/1.0f, /*offset=*/0.0f, x, matrix.cols, tiles_.count(),
                threads),
        unit_(matrix.constellation->rings.back().radius / static_cast<float>(kMostRadius)) {
    tabulate_radii(*matrix.constellation);
  }

  const CodeTiles& tiles() const { return tiles_; }
  // multiply_rounded16 divides by 2^15.
  float factor() const { return 32768.0f * unit_; }

  void add_tile(const std::uint8_t* codes, Index tile, RowSums& sums) const {
    for (Index b = 0; b < WordTables::kTileColumns; b += kWordBlock) {
      add_block(codes + b * kPanelRows, tile * WordTables::kTileColumns + b, sums);
    }
  }

 private:
  // What the codes of one column say of a register of rows.
  struct Column {
    Register angle;     // the bits that tell u
    Register radii[2];  // signed words of the rows {0-7, 16-23, ...} and {8-15, 24-31, ...}
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
    prefetch_codes(codes);
    const RingCodes code = split_codes(load_bytes(codes));
    const auto plane = [&](int b) {
      return table_entries(load_table(radii_[b]), code.ring) ^ code.negative;
    };
    const Register low = plane(0), high = plane(1);
    return {code.angle, {interleave_low8(low, high), interleave_high8(low, high)}};
  }

  void add_block(const std::uint8_t* codes, Index first_column, RowSums& sums) const {
    WordSums words = {};
#pragma GCC unroll 2
    for (Index c = 0; c < kWordBlock; ++c) {
      const Column column = read_column(codes + c * kPanelRows);
      for (int component = 0; component < 2; ++component) {
        const auto [low, high] = tables_.look_up(first_column + c, component, column.angle);
        const Register products[2] = {interleave_low8(low, high), interleave_high8(low, high)};
        for (int half = 0; half < 2; ++half) {
          words[component][half] =
              add16(words[component][half], multiply_rounded16(products[half], column.radii[half]));
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

class FloatRingProduct {
 public:
  static constexpr const RowOrder& kOrder = kFloatOrder;

  FloatRingProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : tiles_(matrix, kTileColumns),
        products_(std::make_unique_for_overwrite<ColumnProducts[]>(
            static_cast<std::size_t>(tiles_.count() * kTileColumns))) {
    radii_.fill(ring_radii(*matrix.constellation).data());
    const ProductTable units = unit_points();
    parallel_for(tiles_.count(), threads, [&](Index tile) {
      const Index first = tile * kTileColumns;
      const Entries<kTileColumns> entries(x, first, matrix.cols);
      for (Index l = 0; l < kTileColumns; ++l) {
        Products products(0.0f);
        products.add(units, entries.real[l], entries.imag[l]);
        products_[first + l][0].fill(0, products.real);
        products_[first + l][1].fill(0, products.imag);
      }
    });
  }

  const CodeTiles& tiles() const { return tiles_; }
  float factor() const { return 1.0f; }

  void add_tile(const std::uint8_t* codes, Index tile, RowSums& sums) const {
    RowSums tile_sums = {};
    for (Index c = 0; c < kTileColumns; ++c) {
      add_column(codes + c * kPanelRows, products_[tile * kTileColumns + c], tile_sums);
    }
    add_sums(tile_sums, sums);
  }

 private:
  static constexpr Index kTileColumns = 64;
  using ColumnProducts = std::array<FloatTables<1>, 2>;  // real and imaginary parts

  void add_column(const std::uint8_t* codes, const ColumnProducts& column, RowSums& sums) const {
    prefetch_codes(codes);
    const RingCodes code = split_codes(load_bytes(codes));
    const Register zero = all8(0);
    const Register signs = code.negative & all8(-128);
    Floats radii[4];
    radii_.look_up({code.ring}, signs, radii);
    for (int component = 0; component < 2; ++component) {
      Floats products[4];
      column[component].look_up({code.angle}, zero, products);
      for (int part = 0; part < 4; ++part) {
        sums[component][part] = multiply_add(radii[part], products[part], sums[component][part]);
      }
    }
  }

  CodeTiles tiles_;
  FloatTables<1> radii_;
  std::unique_ptr<ColumnProducts[]> products_;
};

}  // namespace

bool ring_products_apply(const CodedMatrix& matrix) {
  return matrix.constellation != nullptr && has_ring_codes(*matrix.constellation);
}

void multiply_rings(const CodedMatrix& matrix, VectorView x, Precision precision, int threads,
                    VectorSpan y) {
  const int team = product_threads(matrix, threads, kNanosecondsPerCode);
  if (precision == Precision::half) {
    multiply_panels(WordRingProduct(matrix, x, team), matrix, x, team, y);
  } else {
    multiply_panels(FloatRingProduct(matrix, x, team), matrix, x, team, y);
  }
}

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

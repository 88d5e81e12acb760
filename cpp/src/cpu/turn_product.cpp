// Turn products: 64 points that are sixteen points and their quarter turns. A code has the turn q
// (bits 5 and 4) and the point p (bits 3 to 0); it stands for i^q · p.
//
// 1. Per column, the products u + iv of x with the sixteen points in fixed point.
// 2. Per column and register of rows: both parts are looked up in registers. Odd turns exchange
//    them, and the first and second turn change the sign of the real part, the second and third
//    that of the imaginary one.
// 3. Words of a block of 16 columns are added up, and become float32.
//
// Table values stand for half a step more than the integer, so that the one's complement has the
// same size with the other sign.
#include "coded_product.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include "parallel.hpp"
#include "word_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr int kCodeBits = 6;
constexpr Index kColumnsAtOnce = 4;  // whose codes fill whole bytes
constexpr Index kBytesAtOnce = kColumnsAtOnce * kCodeBits / 8;
constexpr double kNanosecondsPerCode = 0.09;

ProductTable first_points(const Constellation& constellation) {
  ProductTable points;
  for (Index i = 0; i < kTableSize; ++i) {
    points.real[i] = constellation.point_real[i];
    points.imag[i] = constellation.point_imag[i];
  }
  return points;
}

class TurnProduct {
 public:
  static constexpr const RowOrder& kOrder = kWordOrder;

  TurnProduct(const CodedMatrix& matrix, VectorView x, int threads)
      : cols_(matrix.cols),
        tiles_(matrix, WordTables::kTileColumns * kCodeBits / 8),
        tables_(first_points(*matrix.constellation), matrix.constellation->rings.back().radius,
                /*offset=*/0.5f, x, matrix.cols, tiles_.count(), threads) {}

  const CodeTiles& tiles() const { return tiles_; }
  float factor() const { return 1.0f; }

  void add_tile(const std::uint8_t* codes, Index tile, RowSums& sums) const {
    constexpr Index kBlockBytes = kWordBlock * kCodeBits / 8;
    const Index first = tile * WordTables::kTileColumns;
    for (Index b = 0; b < WordTables::kTileColumns / kWordBlock; ++b) {
      add_block(codes + b * kBlockBytes * kPanelRows, first + b * kWordBlock, sums);
    }
  }

 private:
  void add_block(const std::uint8_t* codes, Index first_column, RowSums& sums) const {
    const Index columns = std::clamp(cols_ - first_column, Index{0}, kWordBlock);
    const Register halves = all16(static_cast<int>(columns / 2));
    WordSums words = {{halves, halves}, {halves, halves}};
    for (Index c = 0; c < kWordBlock; c += kColumnsAtOnce) {
      Register bytes[kBytesAtOnce];
      for (Index b = 0; b < kBytesAtOnce; ++b) {
        const std::uint8_t* source = codes + (c * kCodeBits / 8 + b) * kPanelRows;
        prefetch_codes(source);
        bytes[b] = load_bytes(source);
      }
#pragma GCC unroll 4
      for (Index i = 0; i < kColumnsAtOnce; ++i) {
        add_column(bit_field<kCodeBits>(bytes, i), first_column + c + i, words);
      }
    }
    add_words(words, tables_.step(first_column), sums);
  }

  void add_column(Register codes, Index column, WordSums& words) const {
    // Bits 4 and 5 as the top bits of bytes.
    const Register odd = shift_left16(codes, 3), late = shift_left16(codes, 2);
    const Register negative_real = negative8(odd ^ late);
    const Register negative_imag = negative8(late);
    const Register point = table_index(codes);
    const WordTables::Bytes u = tables_.look_up(column, 0, point);
    const WordTables::Bytes v = tables_.look_up(column, 1, point);
    const auto choose = [&](Register even_turn, Register odd_turn, Register negative) {
      return choose8(even_turn, odd_turn, odd) ^ negative;
    };
    add_part(choose(u.low, v.low, negative_real), choose(u.high, v.high, negative_real), words[0]);
    add_part(choose(v.low, u.low, negative_imag), choose(v.high, u.high, negative_imag), words[1]);
  }

  static void add_part(Register low, Register high, Register (&words)[2]) {
    words[0] = add16(words[0], interleave_low8(low, high));
    words[1] = add16(words[1], interleave_high8(low, high));
  }

  Index cols_;
  CodeTiles tiles_;
  WordTables tables_;
};

}  // namespace

bool turn_products_apply(const CodedMatrix& matrix) {
  return matrix.constellation != nullptr && matrix.code_bits() == kCodeBits &&
         matrix.constellation->turns == 4;
}

void multiply_turns(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const int team = product_threads(matrix, threads, kNanosecondsPerCode);
  multiply_panels(TurnProduct(matrix, x, team), matrix, x, team, y);
}

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

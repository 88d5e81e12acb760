// Trellis products: the point of an entry follows from look-ups in tables of sixteen bytes.
//
// 1. At half precision x becomes integers of up to 16 bits, with a step per block of 16 columns.
// 2. Per panel and tile the codes are unpacked, and per 32 rows and column they give the indices of
//    the levels of both parts (trellis_indexes.hpp).
// 3. These become words. At half precision they are multiplied with x and rounded to 16 bits, which
//    a block of 16 columns cannot overflow, and the block's sums become float32. At single
//    precision the words, which are exact, become float32 first.
#include "coded_product.hpp"

#if defined(__AVX2__)

#include <vector>

#include "parallel.hpp"
#include "product_tables.hpp"
#include "trellis_indexes.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kBlock = 16;  // columns that share a step
// What the products of a block with the largest levels may add up to, before each of its two
// products per column is rounded: they stay below 2^15.
constexpr float kMostSum = 32700.0f;
constexpr Index kPanelsPerItem = 4;  // segments start with an item
constexpr double kNanosecondsPerCode = 0.2;
static_assert(kSegmentRows % (kPanelsPerItem * kPanelRows) == 0);

// Levels as words as large as may be: bytes as their upper half, or weighted sums.
template <Fine kFine>
class Levels {
 public:
  explicit Levels(const Trellis& code) {
    alignas(16) std::uint8_t coarse[kTableSize], fine[2][kTableSize];  // signed
    int most_coarse = 0, most_fine = 0;
    for (Index i = 0; i < kTableSize; ++i) {
      coarse[i] = static_cast<std::uint8_t>(code.coarse[i]);
      const auto index =
          kFine == Fine::previous
              ? code.index_of_codes(static_cast<std::uint32_t>(i << code.code_bits)).fine
              : static_cast<std::uint8_t>(0x11 * i);
      fine[0][i] = static_cast<std::uint8_t>(code.fine[index & 15]);
      fine[1][i] = static_cast<std::uint8_t>(code.fine[index >> 4]);
      most_coarse = std::max(most_coarse, std::abs(code.coarse[i]));
      most_fine = std::max(most_fine, std::abs(code.fine[i]));
    }
    coarse_ = load_table(coarse);
    for (int part = 0; part < 2; ++part) fine_[part] = load_table(fine[part]);
    const int shift = code.fine_shift;
    const int weight = kFine == Fine::word ? 255 >> shift : 256;  // of the last bit
    if constexpr (kFine == Fine::word) {
      weights_ = _mm256_set1_epi16(static_cast<short>(weight << 8 | weight << shift));
    }
    largest_ = static_cast<float>(weight * ((most_coarse << shift) + most_fine));
    unit_ = std::ldexp(1.0f, -(kLevelBits + shift)) / static_cast<float>(weight);
  }

  float largest() const { return largest_; }  // of the words
  float unit() const { return unit_; }        // value of a word's last bit

  // Levels of 32 rows as bytes, of the real and the imaginary part: in one, or the coarse and the
  // fine ones.
  struct Bytes {
    __m256i parts[2][kFine == Fine::word ? 2 : 1];
  };

  void look_up(LevelIndexes index, Bytes& bytes) const {
    const bool halves = kFine != Fine::previous;
    look_up_part(0, low_halves(index.coarse), halves ? low_halves(index.fine) : index.fine, bytes);
    look_up_part(1, high_halves(index.coarse), halves ? high_halves(index.fine) : index.fine,
                 bytes);
  }

  // Words of rows {0-7, 16-23} and {8-15, 24-31}.
  void widen(const Bytes& bytes, WordSums& words) const {
    for (int part = 0; part < 2; ++part) {
      const auto& levels = bytes.parts[part];
      if constexpr (kFine == Fine::word) {
        words[part][0] = _mm256_maddubs_epi16(weights_, _mm256_unpacklo_epi8(levels[0], levels[1]));
        words[part][1] = _mm256_maddubs_epi16(weights_, _mm256_unpackhi_epi8(levels[0], levels[1]));
      } else {
        const __m256i zero = _mm256_setzero_si256();
        words[part][0] = _mm256_unpacklo_epi8(zero, levels[0]);
        words[part][1] = _mm256_unpackhi_epi8(zero, levels[0]);
      }
    }
  }

 private:
  void look_up_part(int part, __m256i coarse_half, __m256i fine_half, Bytes& bytes) const {
    auto& levels = bytes.parts[part];
    levels[0] = _mm256_shuffle_epi8(coarse_, coarse_half);
    if constexpr (kFine == Fine::none) return;
    const __m256i fine = _mm256_shuffle_epi8(fine_[part], fine_half);
    if constexpr (kFine == Fine::word) {
      levels[1] = fine;
    } else {
      levels[0] = _mm256_add_epi8(levels[0], fine);
    }
  }

  __m256i coarse_, fine_[2];  // of both parts
  __m256i weights_;           // of coarse and fine bytes in turn, for Fine::word
  float largest_;
  float unit_;
};

template <Fine kFine>
using LevelTile = typename Levels<kFine>::Bytes[kTrellisTileColumns];

// x as integers of up to 16 bits, as large as sums of a block of products allow.
class WordVector {
 public:
  // Zeros follow x up to `columns`, whole blocks. mulhrs divides by 2^15.
  WordVector(VectorView x, Index cols, Index columns, float largest_level, float unit)
      : columns_(columns), steps_(columns / kBlock) {
    for (Index first = 0; first < columns; first += kBlock) {
      fill_block(first, std::min(cols, first + kBlock), x, largest_level / 32768.0f,
                 unit * 32768.0f);
    }
  }

  // One column in all words.
  struct Column {
    __m256i real, minus_real, imag;
  };
  using Tile = Column[kTrellisTileColumns];

  void spread(Index first_column, Tile& tile) const {
    const auto broadcast = [](std::uint32_t word) {
      return _mm256_set1_epi32(static_cast<std::int32_t>(word));
    };
    for (Index c = 0; c < kTrellisTileColumns; ++c) {
      const Words& words = columns_[first_column + c];
      tile[c] = {broadcast(words.real), broadcast(words.minus_real), broadcast(words.imag)};
    }
  }

  float unit() const { return 1.0f; }  // of the sums

  // sums += levels times the columns of a tile of x.
  template <Fine kFine>
  void add_tile(const Levels<kFine>& levels, const LevelTile<kFine>& tile, const Tile& x,
                Index first_column, RowSums& sums) const {
    for (Index block = 0; block < kTrellisTileColumns; block += kBlock) {
      WordSums words = {};
      for (Index c = block; c < block + kBlock; ++c) {
        WordSums points;
        levels.widen(tile[c], points);
        add_products(points, x[c], words);
      }
      add_words(words, steps_[(first_column + block) / kBlock], sums);
    }
  }

 private:
  struct Words {
    std::uint32_t real = 0, minus_real = 0, imag = 0;  // twice 16 bits
  };

  void fill_block(Index first, Index end, VectorView x, float largest_level, float unit) {
    float sum = 0, most = 0;
    for (Index l = first; l < end; ++l) {
      const float re = std::fabs(x.real[l]), im = std::fabs(x.imag[l]);
      sum += re + im;
      most = std::max({most, re, im});
    }
    const bool counts = most >= kLeastBound;
    const float step = std::max(sum * (largest_level / kMostSum), most / 32767.0f);
    const float inverse = counts ? 1.0f / step : 0.0f;
    for (Index l = first; l < end; ++l) {
      columns_[l] = {twice(x.real[l] * inverse), twice(-x.real[l] * inverse),
                     twice(x.imag[l] * inverse)};
    }
    steps_[first / kBlock] = counts ? unit * step : 0.0f;
  }

  // The nearest integer in both words.
  static std::uint32_t twice(float value) {
    return 0x10001u * static_cast<std::uint16_t>(static_cast<std::int32_t>(std::nearbyint(value)));
  }

  static void add_products(const WordSums& points, const Column& x, WordSums& words) {
    for (int half = 0; half < 2; ++half) {
      const __m256i real = points[0][half], imag = points[1][half];
      add_difference(words[0][half], _mm256_mulhrs_epi16(real, x.real),
                     _mm256_mulhrs_epi16(imag, x.imag));
      add_difference(words[1][half], _mm256_mulhrs_epi16(real, x.imag),
                     _mm256_mulhrs_epi16(imag, x.minus_real));
    }
  }

  // Products that lie between two integers, of which there are many, are rounded up. In differences
  // that cancels; in sums it would add up from column to column.
  static void add_difference(__m256i& sum, __m256i plus, __m256i minus) {
    sum = _mm256_sub_epi16(_mm256_add_epi16(sum, plus), minus);
  }

  std::vector<Words> columns_;
  std::vector<float> steps_;  // value of a product's last bit, per block
};

// x as it is.
class FloatVector {
 public:
  FloatVector(VectorView x, Index cols, Index columns, float /*largest_level*/, float unit)
      : real_(columns), imag_(columns), unit_(unit) {
    std::copy_n(x.real, cols, real_.begin());
    std::copy_n(x.imag, cols, imag_.begin());
  }

  struct Tile {
    const float *real, *imag;
  };

  void spread(Index first_column, Tile& tile) const {
    tile = {real_.data() + first_column, imag_.data() + first_column};
  }

  float unit() const { return unit_; }

  template <Fine kFine>
  void add_tile(const Levels<kFine>& levels, const LevelTile<kFine>& tile, const Tile& x,
                Index /*first_column*/, RowSums& sums) const {
    RowSums tile_sums = {};
    for (Index c = 0; c < kTrellisTileColumns; ++c) {
      WordSums points;
      levels.widen(tile[c], points);
      add_products(points, _mm256_broadcast_ss(x.real + c), _mm256_broadcast_ss(x.imag + c),
                   tile_sums);
    }
    add_sums(tile_sums, sums);
  }

 private:
  // In the order of add_words: even and odd words of one half, then of the other.
  static void add_products(const WordSums& points, __m256 re, __m256 im, RowSums& sums) {
    for (int part = 0; part < 4; ++part) {
      const __m256i chosen = _mm256_set1_epi32(part % 2 == 0 ? 1 : 1 << 16);
      const auto floats = [&](__m256i words) {
        return _mm256_cvtepi32_ps(_mm256_madd_epi16(words, chosen));
      };
      const __m256 real = floats(points[0][part / 2]), imag = floats(points[1][part / 2]);
      sums[0][part] = _mm256_fmadd_ps(real, re, sums[0][part]);
      sums[1][part] = _mm256_fmadd_ps(real, im, sums[1][part]);
      sums[0][part] = _mm256_fnmadd_ps(imag, im, sums[0][part]);
      sums[1][part] = _mm256_fmadd_ps(imag, re, sums[1][part]);
    }
  }

  std::vector<float> real_, imag_;
  float unit_;
};

template <class Indexes, Fine kFine, class Vector>
class TrellisProduct {
 public:
  TrellisProduct(const CodedMatrix& matrix, VectorView x)
      : matrix_(matrix),
        tiles_(matrix, kTrellisTileColumns * matrix.code_bits() / 8),
        indexes_(*matrix.trellis),
        levels_(*matrix.trellis),
        x_(x, matrix.cols, tiles_.count() * kTrellisTileColumns, levels_.largest(),
           levels_.unit()) {}

  void multiply(VectorView x, int threads, VectorSpan y) const {
    for_row_blocks(
        matrix_, x, kPanelsPerItem * kPanelRows, threads, y, [] { return Scratch(); },
        [&](Index begin, Index end, Scratch& scratch) { multiply_rows(begin, end, scratch, y); });
  }

 private:
  struct Scratch {
    Scratch() {}  // leaves the bytes as they are
    CodeTiles::Scratch tile;
    typename Indexes::Rows rows;
    typename Vector::Tile x;
  };

  void multiply_rows(Index begin, Index end, Scratch& scratch, VectorSpan y) const {
    RowSums sums[kPanelsPerItem * kPanelRows / kVectorRows] = {};
    for (Index tile = 0; tile < tiles_.count(); ++tile) {
      unpack_above(begin, tile, scratch);
      x_.spread(tile * kTrellisTileColumns, scratch.x);
      for (Index first = begin; first < end; first += kPanelRows) {
        const Index count = std::min(end - first, kPanelRows);
        const std::uint8_t* codes = tiles_.tile(first, tile, scratch.tile);
        indexes_.unpack(codes, 0, count, scratch.rows);
        for (Index row = 0; row < count; row += kVectorRows) {
          const typename Indexes::Tile indexes(indexes_, codes, scratch.rows, row);
          add_rows(indexes, scratch.x, tile * kTrellisTileColumns,
                   sums[(first + row - begin) / kVectorRows]);
        }
        indexes_.leave(codes, count, scratch.rows);
      }
    }
    for (Index row = begin; row < end; row += kVectorRows) {
      store_rows(sums[(row - begin) / kVectorRows], kWordOrder, x_.unit(), matrix_, row, y);
    }
  }

  // Rows above `row`: where a segment starts, circularly, those before its end.
  void unpack_above(Index row, Index tile, Scratch& scratch) const {
    Index end = row;
    const Index segment = segment_of(matrix_.rows, row);
    if (row == segment_begin(matrix_.rows, segment)) {
      end = segment_begin(matrix_.rows, segment + 1);
    }
    const Index panel = (end - 1) / kPanelRows * kPanelRows;
    if (end - panel < Indexes::kReach && panel > 0) unpack_end(panel, tile, scratch);
    unpack_end(end, tile, scratch);
  }

  // Unpacks what states may reach of the rows before `end`, the last of a panel or the matrix.
  void unpack_end(Index end, Index tile, Scratch& scratch) const {
    const Index panel = (end - 1) / kPanelRows * kPanelRows, count = end - panel;
    const Index begin = std::max(Index{0}, count - Indexes::kReach) / kVectorRows * kVectorRows;
    const std::uint8_t* codes = tiles_.tile(panel, tile, scratch.tile);
    indexes_.unpack(codes, begin, count, scratch.rows);
    indexes_.leave(codes, count, scratch.rows);
  }

  void add_rows(const typename Indexes::Tile& indexes, const typename Vector::Tile& x,
                Index first_column, RowSums& sums) const {
    LevelTile<kFine> levels;
    look_up_tile(indexes, levels);
    add_tile(levels, x, first_column, sums);
  }

  // Two functions, so that the tables of the one leave registers to the sums of the other; and two
  // loops, as a column's steps all wait for each other: within one of them the processor sees those
  // of the next columns in time.
  [[gnu::noinline]] void look_up_tile(const typename Indexes::Tile& indexes,
                                      LevelTile<kFine>& tile) const {
    const typename Indexes::Tile index_tables = indexes;  // copies, which registers can keep
    const Levels<kFine> levels = levels_;
    for (Index c = 0; c < kTrellisTileColumns; ++c) levels.look_up(index_tables.at(c), tile[c]);
  }

  [[gnu::noinline]] void add_tile(const LevelTile<kFine>& tile, const typename Vector::Tile& x,
                                  Index first_column, RowSums& sums) const {
    const Levels<kFine> levels = levels_;
    x_.add_tile(levels, tile, x, first_column, sums);
  }

  const CodedMatrix& matrix_;
  CodeTiles tiles_;
  Indexes indexes_;
  Levels<kFine> levels_;
  Vector x_;
};

template <class Vector, Fine kFine>
void multiply_taps(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const auto with_taps = [&]<std::size_t kTaps>() {
    TrellisProduct<TapIndexes<kTaps, kFine>, kFine, Vector>(matrix, x).multiply(x, threads, y);
  };
  switch (taps_of(*matrix.trellis).size()) {
    case 3: return with_taps.template operator()<3>();
    case 4: return with_taps.template operator()<4>();
    case 5: return with_taps.template operator()<5>();
    default: return with_taps.template operator()<0>();
  }
}

template <class Vector>
void multiply(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  if (matrix.code_bits() == 8) {
    return TrellisProduct<ByteIndexes, Fine::word, Vector>(matrix, x).multiply(x, threads, y);
  }
  switch (fine_kind(*matrix.trellis)) {
    case Fine::none: return multiply_taps<Vector, Fine::none>(matrix, x, threads, y);
    case Fine::previous: return multiply_taps<Vector, Fine::previous>(matrix, x, threads, y);
    case Fine::byte: return multiply_taps<Vector, Fine::byte>(matrix, x, threads, y);
    case Fine::word: return multiply_taps<Vector, Fine::word>(matrix, x, threads, y);
  }
}

}  // namespace

void multiply_trellis(const CodedMatrix& matrix, VectorView x, Precision precision, int threads,
                      VectorSpan y) {
  const int team = product_threads(matrix, threads, kNanosecondsPerCode);
  if (precision == Precision::half) {
    multiply<WordVector>(matrix, x, team, y);
  } else {
    multiply<FloatVector>(matrix, x, team, y);
  }
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

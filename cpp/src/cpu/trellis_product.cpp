// Trellis products: the point of an entry follows from look-ups in tables of sixteen bytes.
//
// Columns l and n - l lie side by side (docs/format.md), and x[n - l] is the conjugate of x[l] = u
// + iv. With a and b the points of both, a x[l] + b x[n - l] is
//   Re(a + b) u - Im(a - b) v + i (Re(a - b) v + Im(a + b) u):
// four real products per pair instead of eight.
//
// 1. At half precision x becomes integers of up to 16 bits, with a step per block of 8 pairs.
// 2. Per block of rows and tile the codes are unpacked, or copied for matrices that take them as
//    they lie, and per register of rows and column they give the indices of the levels of both
//    parts (trellis_tiles.hpp, trellis_indexes.hpp, trellis_matrices.hpp).
// 3. Levels of pairs are added and subtracted, and become words. At half precision these are
//    multiplied with x and rounded to 16 bits, which a block cannot overflow, and the block's sums
//    become float32. At single precision the words, which are exact, become float32 first.
#include "coded_product.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <vector>

#include "parallel.hpp"
#include "product_tables.hpp"
#include "trellis_levels.hpp"
#include "trellis_matrices.hpp"
#include "trellis_tiles.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kBlock = 8;  // pairs that share a step
// What the products of a block with the largest levels may add up to, before x and each of the two
// products per pair are rounded: they stay below 2^15.
constexpr float kMostSum = 32700.0f;
constexpr Index kPanelsPerItem = 4;  // segments start with an item
constexpr double kNanosecondsPerCode = 0.2;
static_assert(kSegmentRows % (kPanelsPerItem * kPanelRows) == 0);

// x as integers of up to 16 bits, as large as sums of a block of products allow.
class WordVector {
 public:
  // Entry i is x[i + 1], which pair i of columns is multiplied with; zeros behind the last pair.
  // multiply_rounded16 divides by 2^15.
  WordVector(VectorView x, Index n, Index tiles, float largest_level, float unit)
      : entries_(tiles * kTilePairs), steps_(tiles * kTilePairs / kBlock) {
    const Index pairs = column_pairs(n);
    for (Index first = 0; first < pairs; first += kBlock) {
      const Index end = std::min(first + kBlock, pairs);
      fill_block(first, end, x, largest_level / 32768.0f, unit * 32768.0f);
    }
  }

  // One entry in all words.
  struct Entry {
    Register real, minus_real, imag;
  };
  using Tile = Entry[kTilePairs];

  void spread(Index first, Tile& tile) const {
    const auto broadcast = [](std::uint32_t word) {
      return all32(static_cast<std::int32_t>(word));
    };
    for (Index i = 0; i < kTilePairs; ++i) {
      const Words& words = entries_[first + i];
      tile[i] = {broadcast(words.real), broadcast(words.minus_real), broadcast(words.imag)};
    }
  }

  float unit() const { return 1.0f; }  // of the sums

  // sums += pairs of columns times a tile of x; words_of(part, first, offset) gives those of pair
  // first + offset, of which the offset is a constant below kGroup.
  template <Index kGroup, class WordsOf>
  void add_tile(WordsOf words_of, const Tile& x, Index first, RowSums& sums) const {
    for (Index block = 0; block < kTilePairs; block += kBlock) {
      WordSums words = {};
      for_groups<kGroup>(kBlock, [&](Index i, Index offset) __attribute__((always_inline)) {
        const Entry& entry = x[block + i + offset];
        add_real(words_of(kReal, block + i, offset), entry, words);
        subtract_imag(words_of(kImag, block + i, offset), entry, words);
      });
      add_words(words, steps_[(first + block) / kBlock], sums);
    }
  }

 private:
  struct Words {
    std::uint32_t real = 0, minus_real = 0, imag = 0;  // twice 16 bits
  };

  void fill_block(Index first, Index end, VectorView x, float largest_level, float unit) {
    float sum = 0, most = 0;
    for (Index i = first; i < end; ++i) {
      const float re = std::fabs(x.real[i + 1]), im = std::fabs(x.imag[i + 1]);
      sum += 2.0f * (re + im);  // of two columns
      most = std::max({most, re, im});
    }
    const bool counts = most >= kLeastBound;
    const float step = std::max(sum * (largest_level / kMostSum), most / 32767.0f);
    const float inverse = counts ? 1.0f / step : 0.0f;
    for (Index i = first; i < end; ++i) {
      const float re = x.real[i + 1] * inverse, im = x.imag[i + 1] * inverse;
      entries_[i] = {twice(re), twice(-re), twice(im)};
    }
    steps_[first / kBlock] = counts ? unit * step : 0.0f;
  }

  // The nearest integer in both words.
  static std::uint32_t twice(float value) {
    return 0x10001u * static_cast<std::uint16_t>(static_cast<std::int32_t>(std::nearbyint(value)));
  }

  // Products that lie between two integers, of which there are many, are rounded up. As half of
  // them are subtracted, that cancels; else it would add up from column to column.
  [[gnu::always_inline]] static void add_real(const PairWords& real, const Entry& x,
                                              WordSums& words) {
    for (int half = 0; half < 2; ++half) {
      words[0][half] = add16(words[0][half], multiply_rounded16(real.sum[half], x.real));
      words[1][half] = add16(words[1][half], multiply_rounded16(real.difference[half], x.imag));
    }
  }

  [[gnu::always_inline]] static void subtract_imag(const PairWords& imag, const Entry& x,
                                                   WordSums& words) {
    for (int half = 0; half < 2; ++half) {
      words[0][half] = sub16(words[0][half], multiply_rounded16(imag.difference[half], x.imag));
      words[1][half] = sub16(words[1][half], multiply_rounded16(imag.sum[half], x.minus_real));
    }
  }

  std::vector<Words> entries_;
  std::vector<float> steps_;  // value of a product's last bit, per block
};

// x as it is.
class FloatVector {
 public:
  FloatVector(VectorView x, Index n, Index tiles, float /*largest_level*/, float unit)
      : real_(tiles * kTilePairs), imag_(tiles * kTilePairs), unit_(unit) {
    std::copy_n(x.real + 1, column_pairs(n), real_.begin());
    std::copy_n(x.imag + 1, column_pairs(n), imag_.begin());
  }

  struct Tile {
    const float *real, *imag;
  };

  void spread(Index first, Tile& tile) const {
    tile = {real_.data() + first, imag_.data() + first};
  }

  float unit() const { return unit_; }

  template <Index kGroup, class WordsOf>
  void add_tile(WordsOf words_of, const Tile& x, Index /*first*/, RowSums& sums) const {
    RowSums tile_sums = {};
    for_groups<kGroup>(kTilePairs, [&](Index i, Index offset) __attribute__((always_inline)) {
      const Floats re = all_floats(x.real[i + offset]), im = all_floats(x.imag[i + offset]);
      add_real(words_of(kReal, i, offset), re, im, tile_sums);
      add_imag(words_of(kImag, i, offset), re, im, tile_sums);
    });
    add_sums(tile_sums, sums);
  }

 private:
  [[gnu::always_inline]] static void add_real(const PairWords& real, Floats re, Floats im,
                                              RowSums& sums) {
    add_words(real.sum, re, sums[0]);
    add_words(real.difference, im, sums[1]);
  }

  [[gnu::always_inline]] static void add_imag(const PairWords& imag, Floats re, Floats im,
                                              RowSums& sums) {
    add_words(imag.difference, -im, sums[0]);
    add_words(imag.sum, re, sums[1]);
  }

  std::vector<float> real_, imag_;
  float unit_;
};

template <class Indexes, Fine kFine, class Vector>
class TrellisProduct {
 public:
  TrellisProduct(const CodedMatrix& matrix, VectorView x)
      : matrix_(matrix),
        tiles_(matrix),
        levels_(*matrix.trellis),
        x_(x, matrix.cols, tiles_.count(), levels_.largest(), levels_.unit()),
        first_entry_(x.real[0]),
        middle_entry_(x.real[matrix.cols / 2]) {}

  void multiply(VectorView x, int threads, VectorSpan y) const {
    for_row_blocks(
        matrix_, x, kPanelsPerItem * kPanelRows, threads, y, [] { return Scratch(); },
        [&](Index begin, Index end, Scratch& scratch) { multiply_rows(begin, end, scratch, y); });
  }

 private:
  using IndexTile = typename Indexes::Tile;
  static constexpr Index kGroup = std::max(Indexes::kGroup, Index{2});  // columns of pairs
  using LevelTile = LevelBytes<kFine>[2][kTrellisTileColumns];

  struct Scratch {
    Scratch() {}  // leaves the bytes as they are
    typename TrellisTiles<Indexes>::Scratch tile;
    typename Vector::Tile x;
  };

  void multiply_rows(Index begin, Index end, Scratch& scratch, VectorSpan y) const {
    RowSums sums[kPanelsPerItem * kPanelRows / kVectorRows] = {};
    for (Index tile = 0; tile < tiles_.count(); ++tile) {
      x_.spread(tile * kTilePairs, scratch.x);
      tiles_.for_registers(begin, end, tile, scratch.tile,
                           [&](Index row, const IndexTile& indexes) {
                             RowSums& row_sums = sums[(row - begin) / kVectorRows];
                             add_pairs(indexes, scratch.x, tile * kTilePairs, row_sums);
                             add_own_images(indexes, tile * kTrellisTileColumns, row_sums);
                           });
    }
    for (Index row = begin; row < end; row += kVectorRows) {
      store_rows(sums[(row - begin) / kVectorRows], Levels<kFine>::kOrder, x_.unit(), matrix_, row,
                 y);
    }
  }

  // Levels of one byte are looked up and multiplied at once; those of two in two functions, so that
  // the tables of the one leave registers to the sums of the other.
  [[gnu::noinline]] void add_pairs(const IndexTile& tile, const typename Vector::Tile& x,
                                   Index first, RowSums& sums) const {
    const Levels<kFine> levels = levels_;  // copies, which registers can keep
    if constexpr (kFine == Fine::word) {
      LevelTile bytes;
      look_up_tile(tile, bytes);
      x_.template add_tile<1>(
          [&](Part part, Index i, Index /*offset*/) __attribute__((always_inline)) {
            return levels.combine(bytes[part][2 * i], bytes[part][2 * i + 1]);
          },
          x, first, sums);
    } else {
      const IndexTile indexes = tile;
      x_.template add_tile<kGroup / 2>(
          [&](Part part, Index i, Index offset) __attribute__((always_inline)) {
            return levels.combine(levels.look_up(part, indexes.at(2 * i, 2 * offset)),
                                  levels.look_up(part, indexes.at(2 * i, 2 * offset + 1)));
          },
          x, first, sums);
    }
  }

  [[gnu::noinline]] void look_up_tile(const IndexTile& tile, LevelTile& bytes) const {
    const IndexTile indexes = tile;
    const Levels<kFine> levels = levels_;
    for_groups<kGroup>(kTrellisTileColumns,
                       [&](Index first, Index offset) __attribute__((always_inline)) {
                         const LevelIndexes index = indexes.at(first, offset);
                         for (const Part part : {kReal, kImag}) {
                           bytes[part][first + offset] = levels.look_up(part, index);
                         }
                       });
  }

  // Columns that are their own mirror images, which come last, if the tile from `first` on has
  // them.
  [[gnu::always_inline]] void add_own_images(const IndexTile& tile, Index first,
                                             RowSums& sums) const {
    const Index column = stored_column(matrix_.cols, 0) - first;
    if (column < 0 || column >= kTrellisTileColumns) return;
    const Index group = column / kGroup * kGroup, offset = column - group;
    add_column(tile.at(group, offset), first_entry_, sums);
    if (matrix_.cols % 2 == 0) add_column(tile.at(group, offset + 1), middle_entry_, sums);
  }

  // sums += the levels of a column that is its own mirror image, times the real entry of x.
  [[gnu::always_inline]] void add_column(LevelIndexes index, float entry, RowSums& sums) const {
    WordSums words;
    for (const Part part : {kReal, kImag}) levels_.widen(levels_.look_up(part, index), words[part]);
    const Floats x = all_floats(entry * levels_.unit() / x_.unit());
    for (const Part part : {kReal, kImag}) add_words(words[part], x, sums[part]);
  }

  const CodedMatrix& matrix_;
  TrellisTiles<Indexes> tiles_;
  Levels<kFine> levels_;
  Vector x_;
  float first_entry_, middle_entry_;  // of x
};

#if defined(LLAVA_FA_HAS_BIT_MATRICES)

template <class Vector, Index kBits>
void multiply_codes(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const auto with_codes = [&]<Index kStateBits>() {
    constexpr Index kCodes = (kStateBits + kBits - 1) / kBits;
    TrellisProduct<MatrixIndexes<kBits, kCodes>, fine_kind(kBits), Vector>(matrix, x).multiply(
        x, threads, y);
  };
  if (matrix.trellis->state_bits <= kDefaultStateBits) {
    return with_codes.template operator()<kDefaultStateBits>();
  }
  return with_codes.template operator()<kMaxStateBits>();
}

template <class Vector>
void multiply(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  switch (matrix.code_bits()) {
    case 1: return multiply_codes<Vector, 1>(matrix, x, threads, y);
    case 2: return multiply_codes<Vector, 2>(matrix, x, threads, y);
    case 3: return multiply_codes<Vector, 3>(matrix, x, threads, y);
    case 4: return multiply_codes<Vector, 4>(matrix, x, threads, y);
    case 5: return multiply_codes<Vector, 5>(matrix, x, threads, y);
    case 6: return multiply_codes<Vector, 6>(matrix, x, threads, y);
    case 7: return multiply_codes<Vector, 7>(matrix, x, threads, y);
    default: return multiply_codes<Vector, 8>(matrix, x, threads, y);
  }
}

#else

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
  switch (fine_kind(matrix.code_bits())) {
    case Fine::none: return multiply_taps<Vector, Fine::none>(matrix, x, threads, y);
    case Fine::previous: return multiply_taps<Vector, Fine::previous>(matrix, x, threads, y);
    case Fine::byte: return multiply_taps<Vector, Fine::byte>(matrix, x, threads, y);
    case Fine::word: return multiply_taps<Vector, Fine::word>(matrix, x, threads, y);
  }
}

#endif

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

#endif  // LLAVA_FA_HAS_REGISTERS

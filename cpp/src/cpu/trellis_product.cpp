// Trellis products: the point of an entry follows from look-ups in tables of sixteen bytes.
//
// 1. x becomes integers of up to 16 bits, with a step per block of 16 columns.
// 2. Per panel and tile the codes are unpacked to one byte per row, after the codes of the rows
//    above, so that the codes of all earlier rows are the same bytes read a little earlier.
// 3. A state's index is linear over GF(2): the exclusive or of one table entry per half byte of the
//    codes that the state holds (Tap). Its half bytes pick the levels of both parts, which are
//    multiplied with x and rounded to 16 bits, which a block of 16 columns cannot overflow.
// 4. Per block the sums become float32.
#include "coded_product.hpp"

#if defined(__AVX2__)

#include <utility>
#include <vector>

#include "parallel.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kTileColumns = 32;
constexpr Index kBlock = 16;  // columns that share a step
// What the products of a block with the largest levels may add up to, before each of its two
// products per column is rounded: they stay below 2^15.
constexpr float kMostSum = 32700.0f;
constexpr Index kHistory = 32;       // bytes before a panel's rows, which keep these aligned
constexpr Index kReach = 16;         // rows above that a state may reach, at the history's end
constexpr Index kPanelsPerItem = 4;  // segments start with an item
constexpr double kNanosecondsPerCode = 0.2;
static_assert(kSegmentRows % (kPanelsPerItem * kPanelRows) == 0 && kReach >= kMaxStateBits);

// Half bytes of codes, low and high: [plane][column][row], the rows of a panel after its history.
struct CodeRows {
  static constexpr Index kColumnBytes = kHistory + kPanelRows;
  alignas(64) std::uint8_t bytes[2][kTileColumns][kColumnBytes];

  // Makes the last of these rows the history of the panel that follows.
  void advance(Index panel_rows, int planes) {
    for (int plane = 0; plane < planes; ++plane) {
#pragma GCC unroll 8
      for (auto& column : bytes[plane]) {
        std::uint8_t* history = column + kHistory - kReach;
        std::memmove(history, history + panel_rows, kReach);
      }
    }
  }
};

// Unpacks the codes of a tile's 32 columns, for rows [first, first + 32) of the panel.
template <int kBits>
void unpack_tile(const std::uint8_t* tile, Index first, CodeRows& rows) {
  constexpr Index kGroup = 8;  // codes, in kBits bytes
  const __m256i low_nibble = _mm256_set1_epi8(15);
  for (Index c = 0; c < kTileColumns; c += kGroup) {
    __m256i bytes[kBits];
    for (Index b = 0; b < kBits; ++b) {
      const std::uint8_t* column = tile + (c / kGroup * kBits + b) * kPanelRows + first;
      prefetch_codes(column);
      bytes[b] = load_bytes(column);
    }
#pragma GCC unroll 8
    for (Index i = 0; i < kGroup; ++i) {
      const __m256i codes = bit_field<kBits>(bytes, i);
      const auto store = [&](int plane, __m256i nibbles) {
        std::uint8_t* out = rows.bytes[plane][c + i] + kHistory + first;
        _mm256_store_si256(reinterpret_cast<__m256i*>(out), nibbles);
      };
      if constexpr (kBits <= 4) {
        store(0, codes);
      } else {
        store(0, _mm256_and_si256(codes, low_nibble));
        store(1, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low_nibble));
      }
    }
  }
}

using UnpackTile = void (*)(const std::uint8_t*, Index, CodeRows&);
constexpr UnpackTile kUnpackTile[kMaxTrellisCodeBits] = {
    unpack_tile<1>, unpack_tile<2>, unpack_tile<3>, unpack_tile<4>,
    unpack_tile<5>, unpack_tile<6>, unpack_tile<7>, unpack_tile<8>};

// What one half byte of the code `back` rows above adds to a state's index.
struct Tap {
  Index back;
  int plane;
  alignas(16) std::uint8_t coarse[kTableSize];
  alignas(16) std::uint8_t fine[kTableSize];
};

constexpr std::size_t kMostTaps = kMaxStateBits;

std::vector<Tap> taps_of(const Trellis& code) {
  const std::uint32_t states = std::uint32_t{1} << code.state_bits;
  std::vector<Tap> taps;
  for (Index back = 0; back * code.code_bits < code.state_bits; ++back) {
    for (int plane = 0; 4 * plane < code.code_bits; ++plane) {
      const Index shift = back * code.code_bits + 4 * plane;
      if (shift >= code.state_bits) continue;
      Tap tap = {back, plane, {}, {}};
      for (std::uint32_t nibble = 0; nibble < kTableSize; ++nibble) {
        const std::uint32_t in_code = (nibble << (4 * plane)) & ((1u << code.code_bits) - 1);
        const std::uint32_t state = (in_code << (back * code.code_bits)) & (states - 1);
        const auto [coarse, fine] = code.index_of(state);
        tap.coarse[nibble] = coarse;
        tap.fine[nibble] = fine;
      }
      taps.push_back(tap);
    }
  }
  return taps;
}

// How levels are put together: of the coarse part alone, by adding bytes, or with the coarse part
// some bits above the fine one.
enum class Fine { none, byte, word };

Fine fine_kind(const Trellis& code) {
  if (!code.has_fine) return Fine::none;
  return code.fine_shift == 0 ? Fine::byte : Fine::word;
}

template <Fine kFine, std::size_t kTaps>  // kTaps 0: any number
class TrellisProduct {
 public:
  TrellisProduct(const CodedMatrix& matrix, VectorView x, std::vector<Tap> taps)
      : matrix_(matrix),
        tiles_(matrix, kTileColumns * matrix.code_bits() / 8),
        unpack_(kUnpackTile[matrix.code_bits() - 1]),
        planes_(matrix.code_bits() > 4 ? 2 : 1),
        taps_(std::move(taps)),
        real_(tiles_.count() * kTileColumns),
        minus_real_(real_.size()),
        imag_(real_.size()),
        steps_(real_.size() / kBlock) {
    tabulate_levels();
    for (Index first = 0; first < tiles_.count() * kTileColumns; first += kBlock) {
      fill_block(first, x);
    }
  }

  void multiply(VectorView x, int threads, VectorSpan y) const {
    for_row_blocks(
        matrix_, x, kPanelsPerItem * kPanelRows, threads, y, [] { return Scratch(); },
        [&](Index begin, Index end, Scratch& scratch) { multiply_rows(begin, end, scratch, y); });
  }

 private:
  struct Scratch {
    Scratch() {}  // leaves the bytes as they are
    CodeTiles::Scratch tile;
    CodeRows rows;
  };

  void tabulate_levels() {
    const Trellis& code = *matrix_.trellis;
    int most_coarse = 0, most_fine = 0;
    for (Index i = 0; i < kTableSize; ++i) {
      coarse_[i] = static_cast<std::uint8_t>(code.coarse[i]);
      fine_[i] = static_cast<std::uint8_t>(code.fine[i]);
      most_coarse = std::max(most_coarse, std::abs(code.coarse[i]));
      most_fine = std::max(most_fine, std::abs(code.fine[i]));
    }
    // Levels are words as large as may be: bytes as their upper half, or weighted sums.
    const int shift = code.fine_shift;
    const int weight = kFine == Fine::word ? 255 >> shift : 256;  // of the last bit
    weights_ = _mm256_set1_epi16(static_cast<short>(weight << 8 | (weight << shift)));
    const int largest = weight * ((most_coarse << shift) + most_fine);
    largest_level_ = static_cast<float>(largest) / 32768.0f;
    unit_ = 32768.0f * std::ldexp(1.0f, -(kLevelBits + shift)) / static_cast<float>(weight);
  }

  void fill_block(Index first, VectorView x) {
    const Index end = std::min(matrix_.cols, first + kBlock);
    float sum = 0, most = 0;
    for (Index l = first; l < end; ++l) {
      const float re = std::fabs(x.real[l]), im = std::fabs(x.imag[l]);
      sum += re + im;
      most = std::max({most, re, im});
    }
    const bool counts = most >= kLeastBound;
    const float step = std::max(sum * (largest_level_ / kMostSum), most / 32767.0f);
    const float inverse = counts ? 1.0f / step : 0.0f;
    for (Index l = first; l < end; ++l) {
      real_[l] = twice(x.real[l] * inverse);
      minus_real_[l] = twice(-x.real[l] * inverse);
      imag_[l] = twice(x.imag[l] * inverse);
    }
    steps_[first / kBlock] = counts ? unit_ * step : 0.0f;
  }

  // The nearest integer in both words.
  static std::uint32_t twice(float value) {
    return 0x10001u * static_cast<std::uint16_t>(static_cast<std::int32_t>(std::nearbyint(value)));
  }

  void multiply_rows(Index begin, Index end, Scratch& scratch, VectorSpan y) const {
    RowSums sums[kPanelsPerItem * kPanelRows / kVectorRows] = {};
    for (Index tile = 0; tile < tiles_.count(); ++tile) {
      unpack_history(begin, tile, scratch);
      for (Index first = begin; first < end; first += kPanelRows) {
        const Index panel_end = std::min(end, first + kPanelRows);
        unpack_rows(first, first, panel_end, tile, scratch);
        for (Index row = first; row < panel_end; row += kVectorRows) {
          add_tile(scratch.rows, row - first, tile, sums[(row - begin) / kVectorRows]);
        }
        scratch.rows.advance(panel_end - first, planes_);
      }
    }
    for (Index row = begin; row < end; row += kVectorRows) {
      store_rows(sums[(row - begin) / kVectorRows], kWordOrder, 1.0f, matrix_, row, y);
    }
  }

  // Unpacks rows [begin, end) of a panel, from a multiple of 32 rows on.
  void unpack_rows(Index panel, Index begin, Index end, Index tile, Scratch& scratch) const {
    const std::uint8_t* codes = tiles_.tile(panel, tile, scratch.tile);
    for (Index row = begin; row < end; row += kVectorRows) {
      unpack_(codes, row - panel, scratch.rows);
    }
  }

  // Rows before `row`: where a segment starts, circularly, those before its end.
  void unpack_history(Index row, Index tile, Scratch& scratch) const {
    Index end = row;
    const Index segment = segment_of(matrix_.rows, row);
    if (row == segment_begin(matrix_.rows, segment)) {
      end = segment_begin(matrix_.rows, segment + 1);
    }
    const Index panel = (end - 1) / kPanelRows * kPanelRows;
    if (end - panel < kReach && panel > 0) unpack_end(panel, tile, scratch);
    unpack_end(end, tile, scratch);
  }

  // Unpacks what is needed of the rows before `end`, the last of a panel or the matrix.
  void unpack_end(Index end, Index tile, Scratch& scratch) const {
    const Index panel = (end - 1) / kPanelRows * kPanelRows;
    const Index needed = std::max(panel, end - kReach) / kVectorRows * kVectorRows;
    unpack_rows(panel, needed, end, tile, scratch);
    scratch.rows.advance(end - panel, planes_);
  }

  // Levels of 32 rows and one column, per part: bytes, or words of rows {0-7, 16-23} and
  // {8-15, 24-31}.
  struct Levels {
    static constexpr int kVectors = kFine == Fine::word ? 2 : 1;
    __m256i parts[2][kVectors];

    __m256i words(int part, int half) const {
      if constexpr (kFine == Fine::word) return parts[part][half];
      const __m256i zero = _mm256_setzero_si256(), bytes = parts[part][0];
      return half == 0 ? _mm256_unpacklo_epi8(zero, bytes) : _mm256_unpackhi_epi8(zero, bytes);
    }
  };

  void add_tile(const CodeRows& rows, Index first_row, Index tile, RowSums& sums) const {
    Levels levels[kTileColumns];
    look_up_levels(rows, first_row, levels);
    for (Index c = 0; c < kTileColumns; c += kBlock) {
      add_block(levels + c, tile * kTileColumns + c, sums);
    }
  }

  void add_block(const Levels* levels, Index first_column, RowSums& sums) const {
    WordSums words = {};
    for (Index c = 0; c < kBlock; ++c) {
      const auto broadcast = [&](const std::vector<std::uint32_t>& x) {
        return _mm256_set1_epi32(static_cast<std::int32_t>(x[first_column + c]));
      };
      const __m256i x_real = broadcast(real_), x_imag = broadcast(imag_);
      const __m256i minus_real = broadcast(minus_real_);
      for (int half = 0; half < 2; ++half) {
        const __m256i real = levels[c].words(0, half), imag = levels[c].words(1, half);
        add_difference(words[0][half], _mm256_mulhrs_epi16(real, x_real),
                       _mm256_mulhrs_epi16(imag, x_imag));
        add_difference(words[1][half], _mm256_mulhrs_epi16(real, x_imag),
                       _mm256_mulhrs_epi16(imag, minus_real));
      }
    }
    add_words(words, steps_[first_column / kBlock], sums);
  }

  // Products that lie between two integers, of which there are many, are rounded up. In differences
  // that cancels; in sums it would add up from column to column.
  static void add_difference(__m256i& sum, __m256i plus, __m256i minus) {
    sum = _mm256_sub_epi16(_mm256_add_epi16(sum, plus), minus);
  }

  // The taps as a loop over columns needs them: where the first column's half bytes are.
  struct LoadedTap {
    const std::uint8_t* nibbles;
    __m256i coarse, fine;
  };

  void look_up_levels(const CodeRows& rows, Index first_row, Levels (&levels)[kTileColumns]) const {
    // Copies, which the loop can keep in registers.
    LoadedTap taps[kTaps == 0 ? kMostTaps : kTaps];
    const std::size_t count = kTaps == 0 ? taps_.size() : kTaps;
    for (std::size_t i = 0; i < count; ++i) {
      const Tap& tap = taps_[i];
      taps[i] = {rows.bytes[tap.plane][0] + kHistory + first_row - tap.back, load_table(tap.coarse),
                 load_table(tap.fine)};
    }
    const __m256i low_nibble = _mm256_set1_epi8(15);
    const __m256i coarse_table = load_table(coarse_), fine_table = load_table(fine_);
    [[maybe_unused]] const __m256i weights = weights_;
    const auto low = [&](__m256i table, __m256i index) {
      return _mm256_shuffle_epi8(table, _mm256_and_si256(index, low_nibble));
    };
    const auto high = [&](__m256i table, __m256i index) {
      return low(table, _mm256_srli_epi16(index, 4));
    };
    for (Index c = 0; c < kTileColumns; ++c) {
      __m256i coarse = _mm256_setzero_si256(), fine = _mm256_setzero_si256();
#pragma GCC unroll 5
      for (std::size_t i = 0; i < count; ++i) {
        const __m256i nibbles = load_bytes(taps[i].nibbles + c * CodeRows::kColumnBytes);
        coarse = _mm256_xor_si256(coarse, _mm256_shuffle_epi8(taps[i].coarse, nibbles));
        fine = _mm256_xor_si256(fine, _mm256_shuffle_epi8(taps[i].fine, nibbles));
      }
      const __m256i real = low(coarse_table, coarse), imag = high(coarse_table, coarse);
      if constexpr (kFine == Fine::none) {
        levels[c] = {{{real}, {imag}}};
      } else {
        const __m256i fine_real = low(fine_table, fine), fine_imag = high(fine_table, fine);
        if constexpr (kFine == Fine::byte) {
          levels[c] = {{{_mm256_add_epi8(real, fine_real)}, {_mm256_add_epi8(imag, fine_imag)}}};
        } else {
          join(real, fine_real, weights, levels[c].parts[0]);
          join(imag, fine_imag, weights, levels[c].parts[1]);
        }
      }
    }
  }

  // Words of weighted sums.
  static void join(__m256i coarse, __m256i fine, __m256i weights,
                   __m256i (&words)[Levels::kVectors]) {
    words[0] = _mm256_maddubs_epi16(weights, _mm256_unpacklo_epi8(coarse, fine));
    words[1] = _mm256_maddubs_epi16(weights, _mm256_unpackhi_epi8(coarse, fine));
  }

  const CodedMatrix& matrix_;
  CodeTiles tiles_;
  UnpackTile unpack_;
  int planes_;  // of half bytes
  std::vector<Tap> taps_;
  alignas(16) std::uint8_t coarse_[kTableSize];  // signed bytes
  alignas(16) std::uint8_t fine_[kTableSize];
  __m256i weights_;      // of coarse and fine bytes in turn
  float largest_level_;  // in words, divided by 2^15, as multiplying does
  float unit_;           // value of a word's last bit, multiplied by 2^15
  std::vector<std::uint32_t> real_, minus_real_, imag_;  // per column, integers, twice 16 bits
  std::vector<float> steps_;                             // per block
};

template <Fine kFine>
void multiply(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  std::vector<Tap> taps = taps_of(*matrix.trellis);
  const auto with_taps = [&]<std::size_t kTaps>() {
    TrellisProduct<kFine, kTaps>(matrix, x, std::move(taps)).multiply(x, threads, y);
  };
  switch (taps.size()) {
    case 3: return with_taps.template operator()<3>();
    case 4: return with_taps.template operator()<4>();
    case 5: return with_taps.template operator()<5>();
    default: return with_taps.template operator()<0>();
  }
}

}  // namespace

void multiply_trellis(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const int team = product_threads(matrix, threads, kNanosecondsPerCode);
  switch (fine_kind(*matrix.trellis)) {
    case Fine::none: return multiply<Fine::none>(matrix, x, team, y);
    case Fine::byte: return multiply<Fine::byte>(matrix, x, team, y);
    case Fine::word: return multiply<Fine::word>(matrix, x, team, y);
  }
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

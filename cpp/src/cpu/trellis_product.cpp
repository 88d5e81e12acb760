// Trellis products: the point of an entry follows from look-ups in tables of sixteen bytes.
//
// 1. x becomes integers of up to 16 bits, with a step per tile of 32 columns.
// 2. Per panel and tile the codes are unpacked to one byte per row, after the codes of the rows
//    above, so that the codes of all earlier rows are the same bytes read a little earlier.
// 3. A state's index is linear over GF(2): the exclusive or of one table entry per half byte of the
//    codes that the state holds (Tap). Its half bytes pick the levels of both parts, which are
//    multiplied with x and added to 32 bits. Levels have a bias against signs, whose share of the
//    sum is the same for all rows.
// 4. Per tile the sums become float32.
#include "coded_product.hpp"

#if defined(__AVX2__)

#include <utility>
#include <vector>

#include "parallel.hpp"
#include "product_tables.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kTileColumns = 32;
constexpr Index kHistory = 32;       // bytes before a panel's rows, which keep these aligned
constexpr Index kReach = 16;         // rows above that a state may reach, at the history's end
constexpr Index kPanelsPerItem = 4;  // segments start with an item
constexpr double kNanosecondsPerCode = 0.15;
static_assert(kSegmentRows % (kPanelsPerItem * kPanelRows) == 0 && kReach >= kMaxStateBits);

// Half bytes of codes, low and high: [plane][column][row], the rows of a panel after its history.
struct CodeRows {
  static constexpr Index kColumnBytes = kHistory + kPanelRows;
  alignas(64) std::uint8_t bytes[2][kTileColumns][kColumnBytes];

  // Makes the last of these rows the history of the panel that follows.
  void advance(Index panel_rows) {
    for (auto& plane : bytes) {
      for (auto& column : plane) {
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
        taps_(std::move(taps)),
        for_real_(tiles_.count() * kTileColumns),
        for_imag_(for_real_.size()),
        scales_(static_cast<std::size_t>(tiles_.count())) {
    tabulate_levels();
    for (Index tile = 0; tile < tiles_.count(); ++tile) fill_tile(tile, x);
  }

  void multiply(int threads, VectorSpan y) const {
    constexpr Index kItemRows = kPanelsPerItem * kPanelRows;
    parallel_for(
        ceil_div(matrix_.rows, kItemRows), threads, [] { return Scratch(); },
        [&](Index item, Scratch& scratch) {
          const Index begin = item * kItemRows, end = std::min(matrix_.rows, begin + kItemRows);
          multiply_rows(begin, end, scratch, y);
        });
  }

 private:
  struct Scratch {
    Scratch() {}  // leaves the bytes as they are
    CodeTiles::Scratch tile;
    CodeRows rows;
  };

  struct TileScale {
    float step;
    std::int32_t bias_real, bias_imag;  // in steps
  };

  void tabulate_levels() {
    const Trellis& code = *matrix_.trellis;
    const int coarse_bias = -*std::ranges::min_element(code.coarse);
    const int fine_bias = -*std::ranges::min_element(code.fine);
    for (Index i = 0; i < kTableSize; ++i) {
      coarse_[i] = static_cast<std::uint8_t>(code.coarse[i] + coarse_bias);
      fine_[i] = static_cast<std::uint8_t>(code.fine[i] + fine_bias);
    }
    bias_ = (coarse_bias << code.fine_shift) + fine_bias;
    unit_ = std::ldexp(1.0f, -(kLevelBits + code.fine_shift));
    fine_weights_ = _mm256_set1_epi16(static_cast<short>(0x100 | (1 << code.fine_shift)));
  }

  // The largest integers of x for which a tile's sums cannot overflow: two products per column, of
  // levels that are at most twice their bias.
  std::int32_t largest_integer() const {
    return std::min(32767, (1 << 30) / (static_cast<std::int32_t>(kTileColumns) * 2 * bias_));
  }

  void fill_tile(Index tile, VectorView x) {
    const Index first = tile * kTileColumns, end = std::min(matrix_.cols, first + kTileColumns);
    float bound = 0;
    for (Index l = first; l < end; ++l) {
      bound = std::max({bound, std::fabs(x.real[l]), std::fabs(x.imag[l])});
    }
    const bool counts = bound >= kLeastBound;
    const auto largest = static_cast<float>(largest_integer());
    const float inverse = counts ? largest / bound : 0.0f;
    std::int32_t sum_real = 0, sum_imag = 0;
    for (Index l = first; l < first + kTileColumns; ++l) {
      const auto re = static_cast<std::int32_t>(l < end ? std::nearbyint(x.real[l] * inverse) : 0);
      const auto im = static_cast<std::int32_t>(l < end ? std::nearbyint(x.imag[l] * inverse) : 0);
      for_real_[l] = packed_pair(re, -im);
      for_imag_[l] = packed_pair(im, re);
      sum_real += re - im;
      sum_imag += im + re;
    }
    scales_[tile] = {counts ? unit_ * bound / largest : 0.0f, bias_ * sum_real, bias_ * sum_imag};
  }

  static std::int32_t packed_pair(std::int32_t low, std::int32_t high) {
    return static_cast<std::int32_t>((static_cast<std::uint32_t>(high) << 16) |
                                     (static_cast<std::uint32_t>(low) & 0xffff));
  }

  void multiply_rows(Index begin, Index end, Scratch& scratch, VectorSpan y) const {
    RowSums sums[kPanelsPerItem * kPanelRows / kVectorRows] = {};
    for (Index tile = 0; tile < tiles_.count(); ++tile) {
      unpack_history(begin, tile, scratch);
      for (Index first = begin; first < end; first += kPanelRows) {
        const Index panel_rows = unpack_panel(first, tile, scratch);
        for (Index row = 0; row < panel_rows; row += kVectorRows) {
          add_tile(scratch.rows, row, tile, sums[(first + row - begin) / kVectorRows]);
        }
        scratch.rows.advance(panel_rows);
      }
    }
    for (Index row = begin; row < end; row += kVectorRows) {
      store_rows(sums[(row - begin) / kVectorRows], kOrder, 1.0f, matrix_, row, y);
    }
  }

  // Unpacks the rows of one panel; how many these are.
  Index unpack_panel(Index first_row, Index tile, Scratch& scratch) const {
    const Index panel_rows = std::min(kPanelRows, matrix_.rows - first_row);
    const std::uint8_t* codes = tiles_.tile(first_row, tile, scratch.tile);
    for (Index row = 0; row < panel_rows; row += kVectorRows) unpack_(codes, row, scratch.rows);
    return panel_rows;
  }

  // Rows before `row`: where a segment starts, circularly, those before its end.
  void unpack_history(Index row, Index tile, Scratch& scratch) const {
    Index end = row;
    const Index segment = segment_of(matrix_.rows, row);
    if (row == segment_begin(matrix_.rows, segment)) {
      end = segment_begin(matrix_.rows, segment + 1);
    }
    const Index last = (end - 1) / kPanelRows * kPanelRows;
    if (end - last < kReach && last > 0) {
      scratch.rows.advance(unpack_panel(last - kPanelRows, tile, scratch));
    }
    scratch.rows.advance(unpack_panel(last, tile, scratch));
  }

  // Levels of 32 rows and one column: words of the real and the imaginary part in turn, eight rows
  // per register.
  struct Levels {
    __m256i words[4];
  };

  void add_tile(const CodeRows& rows, Index first_row, Index tile, RowSums& sums) const {
    Levels levels[kTileColumns];
    look_up_levels(rows, first_row, levels);
    __m256i totals[2][4] = {};
    for (Index c = 0; c < kTileColumns; ++c) {
      const __m256i(&words)[4] = levels[c].words;
      const __m256i for_real = _mm256_set1_epi32(for_real_[tile * kTileColumns + c]);
      const __m256i for_imag = _mm256_set1_epi32(for_imag_[tile * kTileColumns + c]);
      for (int i = 0; i < 4; ++i) {
        totals[0][i] = _mm256_add_epi32(totals[0][i], _mm256_madd_epi16(words[i], for_real));
        totals[1][i] = _mm256_add_epi32(totals[1][i], _mm256_madd_epi16(words[i], for_imag));
      }
    }
    const TileScale& scale = scales_[tile];
    const __m256i bias[2] = {_mm256_set1_epi32(scale.bias_real),
                             _mm256_set1_epi32(scale.bias_imag)};
    for (int component = 0; component < 2; ++component) {
      for (int i = 0; i < 4; ++i) {
        const __m256i value = _mm256_sub_epi32(totals[component][i], bias[component]);
        sums[component][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(value), _mm256_set1_ps(scale.step),
                                             sums[component][i]);
      }
    }
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
    const __m256i fine_weights = fine_weights_;
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
        levels[c] = pair_bytes(real, imag);
      } else {
        const __m256i fine_real = low(fine_table, fine), fine_imag = high(fine_table, fine);
        levels[c] =
            kFine == Fine::byte
                ? pair_bytes(_mm256_add_epi8(real, fine_real), _mm256_add_epi8(imag, fine_imag))
                : join_words(real, fine_real, imag, fine_imag, fine_weights);
      }
    }
  }

  static Levels pair_bytes(__m256i real, __m256i imag) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i low = _mm256_unpacklo_epi8(real, imag), high = _mm256_unpackhi_epi8(real, imag);
    return {_mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
            _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
  }

  // coarse · 2^shift + fine of both parts.
  static Levels join_words(__m256i real, __m256i fine_real, __m256i imag, __m256i fine_imag,
                           __m256i weights) {
    const auto words = [&](__m256i pairs) { return _mm256_maddubs_epi16(pairs, weights); };
    const __m256i real_low = words(_mm256_unpacklo_epi8(real, fine_real));
    const __m256i real_high = words(_mm256_unpackhi_epi8(real, fine_real));
    const __m256i imag_low = words(_mm256_unpacklo_epi8(imag, fine_imag));
    const __m256i imag_high = words(_mm256_unpackhi_epi8(imag, fine_imag));
    return {_mm256_unpacklo_epi16(real_low, imag_low), _mm256_unpackhi_epi16(real_low, imag_low),
            _mm256_unpacklo_epi16(real_high, imag_high),
            _mm256_unpackhi_epi16(real_high, imag_high)};
  }

  // As two steps of unpacking leave the rows.
  static constexpr RowOrder kOrder = {0, 1, 2,  3,  16, 17, 18, 19, 4,  5,  6,  7,  20, 21, 22, 23,
                                      8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};

  const CodedMatrix& matrix_;
  CodeTiles tiles_;
  UnpackTile unpack_;
  std::vector<Tap> taps_;
  alignas(16) std::uint8_t coarse_[kTableSize];  // levels plus their bias
  alignas(16) std::uint8_t fine_[kTableSize];
  std::int32_t bias_;     // of a whole level
  float unit_;            // value of a level's last bit
  __m256i fine_weights_;  // of coarse and fine bytes in turn
  // Per column, x as integers, twice 16 bits: what multiplies (real, imag) for the real part of the
  // product, and for the imaginary one.
  std::vector<std::int32_t> for_real_, for_imag_;
  std::vector<TileScale> scales_;
};

template <Fine kFine>
void multiply(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  std::vector<Tap> taps = taps_of(*matrix.trellis);
  const auto with_taps = [&]<std::size_t kTaps>() {
    TrellisProduct<kFine, kTaps>(matrix, x, std::move(taps)).multiply(threads, y);
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
  const double codes = static_cast<double>(matrix.rows) * static_cast<double>(matrix.cols);
  const int team = step_threads(threads, kNanosecondsPerCode * codes);
  switch (fine_kind(*matrix.trellis)) {
    case Fine::none: return multiply<Fine::none>(matrix, x, team, y);
    case Fine::byte: return multiply<Fine::byte>(matrix, x, team, y);
    case Fine::word: return multiply<Fine::word>(matrix, x, team, y);
  }
}

}  // namespace llava_fa::cpu

#endif  // __AVX2__

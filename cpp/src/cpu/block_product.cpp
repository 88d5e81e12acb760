// Block products: codes are decoded into blocks (block.hpp) that the first caches hold, which are
// multiplied with many activations.
//
// 1. Activations are arranged in tiles of six: both numbers of slot after slot.
// 2. Per panel of 64 rows and 64 slots, points are decoded into a block.
// 3. A block is multiplied with tile after tile; its sums stay in registers.
#include "coded_product.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>
#include <vector>

#include "block.hpp"
#include "constellation_decoder.hpp"
#include "parallel.hpp"
#include "trellis_decoder.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kTileBatch = 6;  // activations that are multiplied at once
// Registers of rows that are multiplied at once: with their sums, they fill 16 or 32 registers.
constexpr Index kTileParts = kVectorRows == 64 ? 4 : 2;
constexpr Index kTileRows = kTileParts * kFloats;
constexpr double kNanosecondsPerPoint = 0.1;
constexpr double kNanosecondsPerProduct = 0.03;  // of a point with an activation

// Activations [first, first + count) of a half spectrum: [tile][slot]{six u', six v'}, zeros
// beyond the last.
class BlockActivations {
 public:
  BlockActivations(const ComplexMatrix& half, Index n, Index first, Index count, int threads)
      : slots_(slot_count(n)),
        tiles_(ceil_div(count, kTileBatch)),
        values_(tiles_ * slots_ * 2 * kTileBatch) {
    constexpr Index kSlotsPerItem = 64;
    const Index pairs = slots_ - 1;
    parallel_for(ceil_div(slots_, kSlotsPerItem), threads, [&](Index item) {
      const Index end = std::min(slots_, (item + 1) * kSlotsPerItem);
      for (Index slot = item * kSlotsPerItem; slot < end; ++slot) {
        constexpr float kHalfSqrt = 0.70710678118654752440f;
        if (slot < pairs) {
          const Index place = (slot + 1) * half.cols() + first;
          fill(slot, half.real() + place, half.imag() + place, kHalfSqrt, count);
        } else {
          const float* middle = n % 2 == 0 ? half.real() + n / 2 * half.cols() + first : nullptr;
          fill(slot, half.real() + first, middle, 1.0f, count);
        }
      }
    });
  }

  Index tiles() const { return tiles_; }
  const float* at(Index tile, Index slot) const {
    return values_.data() + (tile * slots_ + slot) * 2 * kTileBatch;
  }

 private:
  void fill(Index slot, const float* u, const float* v, float factor, Index count) {
    for (Index tile = 0; tile < tiles_; ++tile) {
      float* out = values_.data() + (tile * slots_ + slot) * 2 * kTileBatch;
      const Index present = std::min(kTileBatch, count - tile * kTileBatch);
      for (Index i = 0; i < kTileBatch; ++i) {
        const Index column = tile * kTileBatch + i;
        out[i] = i < present ? factor * u[column] : 0.0f;
        out[kTileBatch + i] = i < present && v != nullptr ? factor * v[column] : 0.0f;
      }
    }
  }

  Index slots_, tiles_;
  FloatBuffer values_;
};

// Sums of a panel's rows and six activations, row by row in the decoder's order.
using TileSums = float[kTileBatch][kPanelRows];

// sums += multipliers of `count` numbers of activations, of kParts registers of rows.
template <Index kParts>
void multiply_tile(const float (*multipliers)[kPanelRows], const float* activations, Index count,
                   Index first_row, TileSums& sums) {
  Floats partial[kParts][kTileBatch];
  for (auto& part : partial) {
    for (Floats& sum : part) sum = all_floats(0.0f);
  }
  for (Index k = 0; k < count; ++k) {
    Floats rows[kParts];
    for (Index part = 0; part < kParts; ++part) {
      rows[part] = load_floats(multipliers[k] + first_row + part * kFloats);
    }
#pragma GCC unroll 6
    for (Index i = 0; i < kTileBatch; ++i) {
      const Floats activation = all_floats(activations[k * kTileBatch + i]);
      for (Index part = 0; part < kParts; ++part) {
        partial[part][i] = multiply_add(rows[part], activation, partial[part][i]);
      }
    }
  }
  for (Index i = 0; i < kTileBatch; ++i) {
    for (Index part = 0; part < kParts; ++part) {
      float* place = sums[i] + first_row + part * kFloats;
      store_floats(place, load_floats(place) + partial[part][i]);
    }
  }
}

// Where the rows of a panel are among its sums.
class PanelOrder {
 public:
  explicit PanelOrder(const RowOrder& order) {
    for (Index lane = 0; lane < kPanelRows; ++lane) {
      const Index first = lane / kVectorRows * kVectorRows;
      lane_of_[first + order[lane % kVectorRows]] = static_cast<std::uint8_t>(lane);
    }
  }
  Index lane(Index row) const { return lane_of_[row]; }

  // How many of a tile's registers from lane `first` on have some of the panel's first `rows` rows.
  Index parts(Index first, Index rows) const {
    Index parts = 0;
    for (Index row = 0; row < rows; ++row) {
      const Index within = lane(row) - first;
      if (within >= 0 && within < kTileRows) parts = std::max(parts, within / kFloats + 1);
    }
    return parts;
  }

 private:
  std::uint8_t lane_of_[kPanelRows];
};

// y of all rows and of the activations [first, first + count). A decoder has
//   Scratch                                           what a thread needs
//   order(), unit()                                   of the rows, and of the multipliers
//   decode(panel, rows, slot, slots, scratch, block)  of the rows from `panel` on
template <class Decoder>
class BlockProduct {
 public:
  BlockProduct(const CodedMatrix& matrix, const Decoder& decoder, const ComplexMatrix& half,
               Index first, Index count, int threads)
      : matrix_(matrix),
        decoder_(decoder),
        order_(decoder.order()),
        x_(half, matrix.cols, first, count, threads),
        first_(first),
        count_(count) {}

  void multiply(int threads, ComplexMatrix& y) const {
    const Index panels = ceil_div(matrix_.rows, kPanelRows);
    parallel_for(
        panels, static_cast<int>(std::min<Index>(threads, panels)),
        [&] { return Scratch(x_.tiles()); },
        [&](Index panel, Scratch& scratch) { multiply_panel(panel * kPanelRows, scratch, y); });
  }

 private:
  struct Scratch {
    explicit Scratch(Index tiles) : sums(static_cast<std::size_t>(2 * tiles)) {}
    struct alignas(64) Sums {
      TileSums tile;
    };
    typename Decoder::Scratch decoder;
    Block block;
    std::vector<Sums> sums;  // of the real parts, then of the imaginary ones
  };

  void multiply_panel(Index panel, Scratch& scratch, ComplexMatrix& y) const {
    const Index rows = std::min(kPanelRows, matrix_.rows - panel);
    const Index slots = slot_count(matrix_.cols), tiles = x_.tiles();
    for (auto& sums : scratch.sums) std::fill_n(sums.tile[0], kTileBatch * kPanelRows, 0.0f);
    for (Index slot = 0; slot < slots; slot += kBlockSlots) {
      const Index count = std::min(kBlockSlots, slots - slot);
      decoder_.decode(panel, rows, slot, count, scratch.decoder, scratch.block);
      for (Index tile = 0; tile < tiles; ++tile) {
        multiply_block(scratch.block.real, tile, slot, count, rows, scratch.sums[tile].tile);
      }
      for (Index tile = 0; tile < tiles; ++tile) {
        multiply_block(scratch.block.imag, tile, slot, count, rows,
                       scratch.sums[tiles + tile].tile);
      }
    }
    for (Index row = 0; row < rows; ++row) {
      const float scale = decoder_.unit() * half_to_float(matrix_.row_scale[panel + row]);
      const Index place = (panel + row) * y.cols() + first_;
      store_row(scratch.sums.data(), order_.lane(row), scale, y.real() + place);
      store_row(scratch.sums.data() + tiles, order_.lane(row), scale, y.imag() + place);
    }
  }

  void multiply_block(const float (*multipliers)[kPanelRows], Index tile, Index slot, Index slots,
                      Index rows, TileSums& sums) const {
    const float* activations = x_.at(tile, slot);
    for (Index first = 0; first < kPanelRows; first += kTileRows) {
      const Index parts = rows == kPanelRows ? kTileParts : order_.parts(first, rows);
      if (parts > 1) {
        multiply_tile<kTileParts>(multipliers, activations, 2 * slots, first, sums);
      } else if (parts == 1) {
        multiply_tile<1>(multipliers, activations, 2 * slots, first, sums);
      }
    }
  }

  void store_row(const typename Scratch::Sums* sums, Index lane, float scale, float* out) const {
    for (Index i = 0; i < count_; ++i) {
      out[i] = scale * sums[i / kTileBatch].tile[i % kTileBatch][lane];
    }
  }

  const CodedMatrix& matrix_;
  const Decoder& decoder_;
  PanelOrder order_;
  BlockActivations x_;
  Index first_, count_;
};

// y = the matrix times a half spectrum, some hundred activations at a time.
template <class Decoder>
void multiply_with(const CodedMatrix& matrix, const Decoder& decoder, const ComplexMatrix& half,
                   int threads, ComplexMatrix& y) {
  constexpr Index kMostAtOnce = 32 * kTileBatch;  // whose sums fit the second cache
  for (Index first = 0; first < half.cols(); first += kMostAtOnce) {
    const Index count = std::min(kMostAtOnce, half.cols() - first);
    BlockProduct(matrix, decoder, half, first, count, threads).multiply(threads, y);
  }
}

}  // namespace

bool blocks_apply(const CodedMatrix& matrix) {
  return matrix.trellis != nullptr || matrix.code_bits() <= 6 ||
         has_ring_codes(*matrix.constellation);
}

void multiply_blocks(const CodedMatrix& matrix, const ComplexMatrix& half, int threads,
                     ComplexMatrix& y) {
  const double nanoseconds =
      kNanosecondsPerPoint + kNanosecondsPerProduct * static_cast<double>(half.cols());
  const int team = product_threads(matrix, threads, nanoseconds);
  const auto with = [&]<class Decoder>() { multiply_with(matrix, Decoder(matrix), half, team, y); };
  if (matrix.trellis != nullptr) {
    if (matrix.code_bits() == 8) return with.template operator()<TrellisDecoder<ByteIndexes>>();
    return with.template operator()<TrellisDecoder<TapIndexes<0, Fine::word>>>();
  }
  switch (matrix.code_bits()) {
    case 1: return with.template operator()<ConstellationDecoder<TablePoints<1>>>();
    case 2: return with.template operator()<ConstellationDecoder<TablePoints<2>>>();
    case 3: return with.template operator()<ConstellationDecoder<TablePoints<3>>>();
    case 4: return with.template operator()<ConstellationDecoder<TablePoints<4>>>();
    case 5: return with.template operator()<ConstellationDecoder<TablePoints<5>>>();
    case 6: return with.template operator()<ConstellationDecoder<TablePoints<6>>>();
    default: return with.template operator()<ConstellationDecoder<RingPoints>>();
  }
}

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

// Block products: codes are decoded into blocks (block.hpp) that the first caches hold, which are
// multiplied with many activations.
//
// 1. Activations are arranged in tiles of six: both numbers of slot after slot.
// 2. Per panel of 64 rows and 64 slots, points are decoded into a block.
// 3. A block is multiplied with tile after tile; its sums stay in registers.
#include "coded_product.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>
#include <memory>
#include <vector>

#include "../bfloat16.hpp"
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

// Sums of a panel's rows and six activations, row by row in the decoder's order.
using TileSums = float[kTileBatch][kPanelRows];

// Numbers as they are: u' and v' apart.
struct SingleNumbers {
  using Number = float;
  static constexpr Index kPerSlot = 2;
  using Multipliers = float[2 * kBlockSlots][kPanelRows];

  // u' and v' of one of six activations.
  static void put(float u, float v, Index i, Number* slot) {
    slot[i] = u;
    slot[kTileBatch + i] = v;
  }

  struct Converted {};
  static const Block& convert(const Block& block, Index /*slots*/, Converted&) { return block; }

  // sums += multipliers of `slots` slots times activations, of kParts registers of rows.
  template <Index kParts>
  static void multiply(const Multipliers& multipliers, const Number* activations, Index slots,
                       Index first_row, TileSums& sums) {
    Floats partial[kParts][kTileBatch];
    clear(partial);
    for (Index k = 0; k < 2 * slots; ++k) {
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
    add(partial, first_row, sums);
  }

  template <Index kParts>
  [[gnu::always_inline]] static void clear(Floats (&partial)[kParts][kTileBatch]) {
    for (auto& part : partial) {
      for (Floats& sum : part) sum = all_floats(0.0f);
    }
  }

  template <Index kParts>
  [[gnu::always_inline]] static void add(const Floats (&partial)[kParts][kTileBatch],
                                         Index first_row, TileSums& sums) {
    for (Index i = 0; i < kTileBatch; ++i) {
      for (Index part = 0; part < kParts; ++part) {
        float* place = sums[i] + first_row + part * kFloats;
        store_floats(place, load_floats(place) + partial[part][i]);
      }
    }
  }
};

#if defined(LLAVA_FA_HAS_BFLOAT16)

// Pairs of u' and v' in bfloat16.
struct BFloat16Numbers {
  using Number = std::uint32_t;
  static constexpr Index kPerSlot = 1;
  using Multipliers = std::uint32_t[kBlockSlots][kPanelRows];

  static void put(float u, float v, Index i, Number* slot) {
    slot[i] = float_to_bfloat16(u) | static_cast<std::uint32_t>(float_to_bfloat16(v)) << 16;
  }

  struct alignas(64) Converted {
    Converted() {}  // leaves the numbers as they are
    Multipliers real, imag;
  };
  [[LLAVA_FA_BFLOAT16]] static const Converted& convert(const Block& block, Index slots,
                                                        Converted& converted) {
    for (Index slot = 0; slot < slots; ++slot) {
      convert(block.real[2 * slot], block.real[2 * slot + 1], converted.real[slot]);
      convert(block.imag[2 * slot], block.imag[2 * slot + 1], converted.imag[slot]);
    }
    return converted;
  }

  template <Index kParts>
  [[LLAVA_FA_BFLOAT16]] static void multiply(const Multipliers& multipliers,
                                             const Number* activations, Index slots,
                                             Index first_row, TileSums& sums) {
    Floats partial[kParts][kTileBatch];
    SingleNumbers::clear(partial);
    for (Index slot = 0; slot < slots; ++slot) {
      Register rows[kParts];
      for (Index part = 0; part < kParts; ++part) {
        rows[part] = load_bytes(multipliers[slot] + first_row + part * kFloats);
      }
#pragma GCC unroll 6
      for (Index i = 0; i < kTileBatch; ++i) {
        const Register activation =
            all32(static_cast<std::int32_t>(activations[slot * kTileBatch + i]));
        for (Index part = 0; part < kParts; ++part) {
          partial[part][i] = add_pair_products(partial[part][i], rows[part], activation);
        }
      }
    }
    SingleNumbers::add(partial, first_row, sums);
  }

 private:
  [[LLAVA_FA_BFLOAT16]] static void convert(const float* u, const float* v, std::uint32_t* pairs) {
    for (Index row = 0; row < kPanelRows; row += kFloats) {
      store_bytes(pairs + row, pair_bfloat16(load_floats(u + row), load_floats(v + row)));
    }
  }
};

#endif

// The activations of a half spectrum times `unit`, as they are read for one block after the other:
// [block][tile][slot]{six u', six v'}, or six pairs of them; zeros beyond the last activation.
template <class Numbers>
class BlockActivations {
 public:
  using Number = typename Numbers::Number;

  BlockActivations(const ComplexMatrix& half, Index n, float unit, int threads)
      : tiles_(ceil_div(half.cols(), kTileBatch)),
        numbers_(std::make_unique_for_overwrite<Number[]>(
            static_cast<std::size_t>(ceil_div(slot_count(n), kBlockSlots) * block_numbers()))) {
    const Index slots = slot_count(n), own_images = slots - 1;
    parallel_for(ceil_div(slots, kBlockSlots), threads, [&](Index block) {
      const Index end = std::min(slots, (block + 1) * kBlockSlots);
      for (Index slot = block * kBlockSlots; slot < end; ++slot) {
        if (slot == own_images) {
          fill(slot, half, 0, unit, n % 2 == 0 ? half.real() + n / 2 * half.cols() : nullptr);
        } else {
          const Index row = slot + 1;
          fill(slot, half, row, kHalfSqrt * unit, half.imag() + row * half.cols());
        }
      }
    });
  }

  Index tiles() const { return tiles_; }
  // Of the block whose first slot is `slot`.
  const Number* at(Index tile, Index slot) const {
    return numbers_.get() + slot / kBlockSlots * block_numbers() + tile * kTileNumbers;
  }

 private:
  static constexpr Index kSlotNumbers = Numbers::kPerSlot * kTileBatch;
  static constexpr Index kTileNumbers = kBlockSlots * kSlotNumbers;

  Index block_numbers() const { return tiles_ * kTileNumbers; }

  // u' is from a row of the half spectrum's real parts; v' is zero if there is none.
  void fill(Index slot, const ComplexMatrix& half, Index row, float factor, const float* v) {
    const float* u = half.real() + row * half.cols();
    for (Index tile = 0; tile < tiles_; ++tile) {
      Number* out = numbers_.get() + slot / kBlockSlots * block_numbers() + tile * kTileNumbers +
                    slot % kBlockSlots * kSlotNumbers;
      const Index first = tile * kTileBatch, present = std::min(kTileBatch, half.cols() - first);
      for (Index i = 0; i < kTileBatch; ++i) {
        const float real = i < present ? factor * u[first + i] : 0.0f;
        const float imag = i < present && v != nullptr ? factor * v[first + i] : 0.0f;
        Numbers::put(real, imag, i, out);
      }
    }
  }

  Index tiles_;
  std::unique_ptr<Number[]> numbers_;
};

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

// y = the matrix times a half spectrum. A decoder has
//   Scratch                                           what a thread needs
//   order(), unit()                                   of the rows, and of the multipliers
//   decode(panel, rows, slot, slots, scratch, block)  of the rows from `panel` on
template <class Decoder, class Numbers>
class BlockProduct {
 public:
  BlockProduct(const CodedMatrix& matrix, const ComplexMatrix& half, int threads)
      : matrix_(matrix),
        decoder_(matrix),
        order_(decoder_.order()),
        x_(half, matrix.cols, decoder_.unit(), threads) {}

  void multiply(int threads, ComplexMatrix& y) const {
    const Index panels = ceil_div(matrix_.rows, kPanelRows);
    parallel_for(
        panels, static_cast<int>(std::min<Index>(threads, panels)),
        [&] { return Scratch(x_.tiles()); },
        [&](Index panel, Scratch& scratch) { multiply_panel(panel * kPanelRows, scratch, y); });
  }

 private:
  struct alignas(64) Sums {
    TileSums tile;
  };

  struct Buffers {
    typename Decoder::Scratch decoder;
    Block block;
    typename Numbers::Converted converted;
  };

  struct Scratch {
    explicit Scratch(Index tiles)
        : buffers(std::make_unique_for_overwrite<Buffers>()),
          sums(static_cast<std::size_t>(2 * tiles)) {}
    std::unique_ptr<Buffers> buffers;  // too large for some threads' stacks
    std::vector<Sums> sums;            // of the real parts, then of the imaginary ones
  };

  // How many of a tile's registers have some of a panel's rows, for each of its tiles.
  using Parts = Index[kPanelRows / kTileRows];

  void multiply_panel(Index panel, Scratch& scratch, ComplexMatrix& y) const {
    const Index rows = std::min(kPanelRows, matrix_.rows - panel);
    const Index slots = slot_count(matrix_.cols), tiles = x_.tiles();
    Parts parts;
    for (Index i = 0; i < kPanelRows / kTileRows; ++i) {
      parts[i] = order_.parts(i * kTileRows, rows);
    }
    Buffers& buffers = *scratch.buffers;
    Sums *real = scratch.sums.data(), *imag = real + tiles;
    for (auto& sums : scratch.sums) std::fill_n(sums.tile[0], kTileBatch * kPanelRows, 0.0f);
    for (Index slot = 0; slot < slots; slot += kBlockSlots) {
      const Index count = std::min(kBlockSlots, slots - slot);
      decoder_.decode(panel, rows, slot, count, buffers.decoder, buffers.block);
      const auto& block = Numbers::convert(buffers.block, count, buffers.converted);
      multiply_block(block.real, slot, count, parts, real);
      multiply_block(block.imag, slot, count, parts, imag);
    }
    for (Index row = 0; row < rows; ++row) {
      const float scale = half_to_float(matrix_.row_scale[panel + row]);
      const Index place = (panel + row) * y.cols();
      store_row(real, order_.lane(row), scale, y.cols(), y.real() + place);
      store_row(imag, order_.lane(row), scale, y.cols(), y.imag() + place);
    }
  }

  void multiply_block(const typename Numbers::Multipliers& multipliers, Index slot, Index slots,
                      const Parts& parts, Sums* sums) const {
    for (Index tile = 0; tile < x_.tiles(); ++tile) {
      const auto* activations = x_.at(tile, slot);
      for (Index i = 0; i < kPanelRows / kTileRows; ++i) {
        const Index first = i * kTileRows;
        if (parts[i] > 1) {
          Numbers::template multiply<kTileParts>(multipliers, activations, slots, first,
                                                 sums[tile].tile);
        } else if (parts[i] == 1) {
          Numbers::template multiply<1>(multipliers, activations, slots, first, sums[tile].tile);
        }
      }
    }
  }

  void store_row(const Sums* sums, Index lane, float scale, Index count, float* out) const {
    for (Index i = 0; i < count; ++i) {
      out[i] = scale * sums[i / kTileBatch].tile[i % kTileBatch][lane];
    }
  }

  const CodedMatrix& matrix_;
  Decoder decoder_;
  PanelOrder order_;
  BlockActivations<Numbers> x_;
};

}  // namespace

bool blocks_apply(const CodedMatrix& matrix) {
  return matrix.trellis != nullptr || matrix.code_bits() <= 6 ||
         has_ring_codes(*matrix.constellation);
}

void multiply_blocks(const CodedMatrix& matrix, const ComplexMatrix& half,
                     [[maybe_unused]] Precision precision, int threads, ComplexMatrix& y) {
  const double nanoseconds =
      kNanosecondsPerPoint + kNanosecondsPerProduct * static_cast<double>(half.cols());
  const int team = product_threads(matrix, threads, nanoseconds);
  const auto with = [&]<class Decoder>() {
#if defined(LLAVA_FA_HAS_BFLOAT16)
    if (precision == Precision::bfloat16 && multiplies_bfloat16()) {
      return BlockProduct<Decoder, BFloat16Numbers>(matrix, half, team).multiply(team, y);
    }
#endif
    BlockProduct<Decoder, SingleNumbers>(matrix, half, team).multiply(team, y);
  };
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

// Decodes blocks (block.hpp) of trellis codes: levels of columns l and n - l, which lie side by
// side, are added and subtracted as words, and become multipliers.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>

#include "block.hpp"
#include "trellis_levels.hpp"
#include "trellis_tiles.hpp"

namespace llava_fa::cpu {

static_assert(kBlockSlots % kTilePairs == 0);

// Levels as words are those of every code.
using WordLevels = Levels<Fine::word>;

template <class Indexes>
class TrellisDecoder {
 public:
  using Scratch = typename TrellisTiles<Indexes>::Scratch;

  explicit TrellisDecoder(const CodedMatrix& matrix)
      : pairs_(column_pairs(matrix.cols)), tiles_(matrix), levels_(*matrix.trellis) {}

  const RowOrder& order() const { return WordLevels::kOrder; }
  float unit() const { return levels_.unit(); }

  void decode(Index panel, Index rows, Index first_slot, Index slots, Scratch& scratch,
              Block& block) const {
    for (Index i = 0; i < slots; i += kTilePairs) {
      const Index tile = (first_slot + i) / kTilePairs, count = std::min(kTilePairs, slots - i);
      tiles_.for_registers(panel, panel + rows, tile, scratch,
                           [&](Index row, const IndexTile& indexes) {
                             decode_tile(indexes, first_slot + i, count, i, row - panel, block);
                           });
    }
  }

 private:
  using IndexTile = typename Indexes::Tile;

  // `count` slots, the first of which becomes slot `place` of the block.
  void decode_tile(const IndexTile& indexes, Index first_slot, Index count, Index place, Index row,
                   Block& block) const {
    const WordLevels levels = levels_;  // a copy, which registers can keep
    for (Index i = 0; i < count; ++i) {
      const LevelIndexes a = indexes.at(2 * i, 0), b = indexes.at(2 * i, 1);
      if (first_slot + i == pairs_) {
        block.store_own_images(place + i, row, points(levels, a), points(levels, b));
        continue;
      }
      const PairWords real = levels.combine(levels.look_up(kReal, a), levels.look_up(kReal, b));
      const PairWords imag = levels.combine(levels.look_up(kImag, a), levels.look_up(kImag, b));
      const Index u = 2 * (place + i), v = u + 1;
      store(real.sum, block.real[u] + row);
      store(imag.difference, block.real[v] + row);
      store(imag.sum, block.imag[u] + row);
      const Register minus[2] = {sub16(all8(0), real.difference[0]),
                                 sub16(all8(0), real.difference[1])};
      store(minus, block.imag[v] + row);
    }
  }

  static RowPoints points(const WordLevels& levels, LevelIndexes index) {
    RowPoints points;
    Register words[2];
    levels.widen(levels.look_up(kReal, index), words);
    to_floats(words, points.real);
    levels.widen(levels.look_up(kImag, index), words);
    to_floats(words, points.imag);
    return points;
  }

  [[gnu::always_inline]] static void store(const Register (&words)[2], float* place) {
    Floats values[4];
    to_floats(words, values);
    for (Index part = 0; part < 4; ++part) store_floats(place + part * kFloats, values[part]);
  }

  // In the order of add_words.
  [[gnu::always_inline]] static void to_floats(const Register (&words)[2], Floats (&values)[4]) {
    for (int half = 0; half < 2; ++half) {
      values[2 * half] = to_float(even_words(words[half]));
      values[2 * half + 1] = to_float(odd_words(words[half]));
    }
  }

  Index pairs_;
  TrellisTiles<Indexes> tiles_;
  WordLevels levels_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

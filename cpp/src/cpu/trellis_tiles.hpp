// Walks through the tiles of a trellis code's matrix: for every panel and tile, the indices of
// states of its rows, whose codes of rows above are found where they are, segments being circular.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>

#include "trellis_indexes.hpp"

namespace llava_fa::cpu {

template <class Indexes>
class TrellisTiles {
 public:
  // One per thread. Holds the rows above the next panel of a tile.
  struct Scratch {
    Scratch() {}  // leaves the bytes as they are
    CodeTiles::Scratch tile;
    typename Indexes::Rows rows;
  };

  explicit TrellisTiles(const CodedMatrix& matrix)
      : rows_(matrix.rows),
        tiles_(matrix, kTrellisTileColumns * matrix.code_bits() / 8),
        indexes_(*matrix.trellis) {}

  Index count() const { return tiles_.count(); }

  // Makes ready for the panel that starts at `row`: where a segment starts, the rows above it are,
  // circularly, those before its end.
  void enter(Index row, Index tile, Scratch& scratch) const {
    Index end = row;
    const Index segment = segment_of(rows_, row);
    if (row == segment_begin(rows_, segment)) end = segment_begin(rows_, segment + 1);
    const Index panel = (end - 1) / kPanelRows * kPanelRows;
    if (end - panel < Indexes::kReach && panel > 0) unpack_end(panel, tile, scratch);
    unpack_end(end, tile, scratch);
  }

  // body(row, indices) for every register of the `count` rows of a panel; then the next panel's
  // turn has come.
  template <class Body>
  [[gnu::always_inline]] void for_registers(Index panel, Index count, Index tile, Scratch& scratch,
                                            Body body) const {
    const std::uint8_t* codes = tiles_.tile(panel, tile, scratch.tile);
    indexes_.unpack(codes, 0, count, scratch.rows);
    for (Index row = 0; row < count; row += kVectorRows) {
      body(row, typename Indexes::Tile(indexes_, codes, scratch.rows, row));
    }
    indexes_.leave(codes, count, scratch.rows);
  }

 private:
  // Unpacks what states may reach of the rows before `end`, the last of a panel or the matrix.
  void unpack_end(Index end, Index tile, Scratch& scratch) const {
    const Index panel = (end - 1) / kPanelRows * kPanelRows, count = end - panel;
    const Index begin = std::max(Index{0}, count - Indexes::kReach) / kVectorRows * kVectorRows;
    const std::uint8_t* codes = tiles_.tile(panel, tile, scratch.tile);
    indexes_.unpack(codes, begin, count, scratch.rows);
    indexes_.leave(codes, count, scratch.rows);
  }

  Index rows_;
  CodeTiles tiles_;
  Indexes indexes_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

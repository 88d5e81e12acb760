// Walks through the tiles of a trellis code's matrix: for some rows and a tile, the indices of
// their states, whose codes of rows above are found where they are, segments being circular.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>

#include "trellis_indexes.hpp"

namespace llava_fa::cpu {

template <class Indexes>
class TrellisTiles {
 public:
  // One per thread.
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

  // body(row, indices) for every register of the rows [begin, end), which start with a panel and
  // are of one segment, at most kSegmentRows.
  template <class Body>
  [[gnu::always_inline]] void for_registers(Index begin, Index end, Index tile, Scratch& scratch,
                                            Body body) const {
    const Index above_end = end_of_rows_above(begin);
    if (above_end != end) unpack_above(above_end, tile, scratch);
    unpack(begin, end, tile, scratch);
    if (above_end == end) indexes_.copy_above(end - begin, scratch.rows);
    for (Index row = 0; row < end - begin; row += kVectorRows) {
      body(begin + row, typename Indexes::Tile(indexes_, scratch.rows, row));
    }
  }

 private:
  // Where the rows above a panel end: where a segment starts, they are, circularly, its last.
  Index end_of_rows_above(Index begin) const {
    const Index segment = segment_of(rows_, begin);
    return begin == segment_begin(rows_, segment) ? segment_begin(rows_, segment + 1) : begin;
  }

  void unpack_above(Index end, Index tile, Scratch& scratch) const {
    Index begin = (end - 1) / kPanelRows * kPanelRows;
    if (end - begin < Indexes::kReach && begin > 0) begin -= kPanelRows;
    unpack(begin, end, tile, scratch);
    indexes_.copy_above(end - begin, scratch.rows);
  }

  void unpack(Index begin, Index end, Index tile, Scratch& scratch) const {
    for (Index first = begin; first < end; first += kPanelRows) {
      const std::uint8_t* codes = tiles_.tile(first, tile, scratch.tile);
      indexes_.unpack(codes, std::min(end - first, kPanelRows), first - begin, scratch.rows);
    }
  }

  Index rows_;
  CodeTiles tiles_;
  Indexes indexes_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

// Viterbi search of one column's codes, and the states that codes stand for.
#pragma once

#include <cstdint>
#include <vector>

#include "llava_fa/trellis.hpp"
#include "row_unpacker.hpp"

namespace llava_fa::cpu {

class ViterbiSearch {
 public:
  ViterbiSearch(const Trellis& code, Index most_rows);

  // states[t] for t < rows minimize sum weight[t] |target[t] - point(state[t])|^2 over the circular
  // sequences of the trellis, up to the choice of the state where the circle closes; the code of
  // row t is the low code_bits of states[t].
  void search(const float* target_real, const float* target_imag, const float* weight, Index rows,
              std::uint16_t* states);

 private:
  struct Target {
    const float* real;
    const float* imag;
    const float* weight;
    Index rows;
  };

  std::uint32_t closing_state(const Target& target);
  void start(std::int64_t state);
  void step(const Target& target, Index row, std::uint8_t* survivors);
  void keep_best_predecessors(std::uint8_t* survivors);
  void add_distances(float weight, float real, float imag);
  std::uint32_t previous(std::uint32_t state, const std::uint8_t* survivors) const;

  const Trellis& code_;
  Index states_;    // 2^state_bits
  Index groups_;    // states that share their predecessors: 2^(state_bits - code_bits)
  Index branches_;  // 2^code_bits
  FloatBuffer cost_;
  FloatBuffer best_;                     // per group, the least cost of its predecessors
  std::vector<std::uint8_t> survivors_;  // (rows, groups): which predecessor that was
};

// Walks down the rows of a packed trellis matrix and keeps the states of all columns.
class TrellisStates {
 public:
  TrellisStates(const std::uint8_t* packed, Index rows, Index cols, const Trellis& code);

  // States of `row`, which is the successor of the previous call's or any other row.
  const std::vector<std::uint16_t>& at(Index row);

 private:
  void push(Index row);
  void read_codes(const std::uint16_t* stored);
  void undo_stored_codes();
  void enter(Index row);

  Index rows_;
  RowCodesReader codes_;
  const Trellis& code_;
  std::vector<std::uint16_t> states_;
  std::vector<std::uint16_t> read_;  // codes of the last row, in order of the columns
  Index next_ = -1;                  // row whose states follow from the present ones
  Index end_ = -1;                   // of the present segment
};

}  // namespace llava_fa::cpu

// CPU trellis code.
//
// Search of one column (ViterbiSearch): the states with the same upper bits share predecessors, so
// a step is
// 1. per group u, the least cost of the states (p, u) over the oldest bits p, which is remembered;
// 2. per state (u, code), that cost plus the weighted distance of its point, without |target|^2.
// 3. The circle closes in the state that a search over the rows around the seam finds there; the
//    full search then starts and ends in it.
//
// Decoding goes down the rows: state = (state << code_bits | code) for all columns at once.
#include "trellis.hpp"

#include <algorithm>

#include "../bit_packing.hpp"
#include "../half_float.hpp"
#include "backend.hpp"
#include "half_tables.hpp"
#include "lanes.hpp"
#include "parallel.hpp"
#include "points.hpp"
#include "registers.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kSeamRows = 64;     // rows on each side of the seam that settle its state
constexpr Index kRowsPerItem = 32;  // of the decoder
constexpr float kForbidden = 1e30f;

typedef std::int32_t LaneInt __attribute__((vector_size(kLanes * 4), aligned(kLanes * 4)));

}  // namespace

ViterbiSearch::ViterbiSearch(const Trellis& code, Index most_rows)
    : code_(code),
      states_(Index{1} << code.state_bits),
      groups_(Index{1} << (code.state_bits - code.code_bits)),
      branches_(Index{1} << code.code_bits),
      cost_(states_),
      best_(groups_),
      survivors_(static_cast<std::size_t>(std::max(most_rows, 2 * kSeamRows) * groups_)) {}

void ViterbiSearch::start(std::int64_t state) {
  std::fill_n(cost_.data(), states_, state < 0 ? 0.0f : kForbidden);
  if (state >= 0) cost_.data()[state] = 0.0f;
}

void ViterbiSearch::keep_best_predecessors(std::uint8_t* survivors) {
  const float* cost = cost_.data();
  Index u = 0;
  for (; u + kLanes <= groups_; u += kLanes) {
    Lane best = load_lane(cost + u);
    LaneInt chosen = {};
    for (Index p = 1; p < branches_; ++p) {
      const Lane other = load_lane(cost + p * groups_ + u);
      const LaneInt better = other < best;
      best = better ? other : best;
      chosen = better ? LaneInt{} + static_cast<std::int32_t>(p) : chosen;
    }
    store_lane(best_.data() + u, best);
    for (Index i = 0; i < kLanes; ++i) survivors[u + i] = static_cast<std::uint8_t>(chosen[i]);
  }
  for (; u < groups_; ++u) {
    Index chosen = 0;
    for (Index p = 1; p < branches_; ++p) {
      if (cost[p * groups_ + u] < cost[chosen * groups_ + u]) chosen = p;
    }
    best_.data()[u] = cost[chosen * groups_ + u];
    survivors[u] = static_cast<std::uint8_t>(chosen);
  }
}

void ViterbiSearch::add_distances(float weight, float real, float imag) {
  const float a = -2.0f * weight * real, b = -2.0f * weight * imag;
  const float *x = code_.point_real.data(), *y = code_.point_imag.data();
  const float *energy = code_.point_energy.data(), *best = best_.data();
  float* cost = cost_.data();
  if (branches_ < kLanes) {
    for (Index u = 0; u < groups_; ++u) {
      std::fill_n(cost + u * branches_, branches_, best[u]);
    }
    for (Index s = 0; s < states_; ++s) cost[s] += weight * energy[s] + a * x[s] + b * y[s];
    return;
  }
  for (Index u = 0; u < groups_; ++u) {
    const Index first = u * branches_;
    for (Index s = first; s < first + branches_; ++s) {
      cost[s] = best[u] + weight * energy[s] + a * x[s] + b * y[s];
    }
  }
}

void ViterbiSearch::step(const Target& target, Index row, std::uint8_t* survivors) {
  keep_best_predecessors(survivors);
  add_distances(target.weight[row], target.real[row], target.imag[row]);
}

std::uint32_t ViterbiSearch::previous(std::uint32_t state, const std::uint8_t* survivors) const {
  const std::uint32_t group = state >> code_.code_bits;
  return (static_cast<std::uint32_t>(survivors[group]) << (code_.state_bits - code_.code_bits)) |
         group;
}

// The state of the last row, from a search over the rows on both sides of the seam; a short circle
// is gone around several times.
std::uint32_t ViterbiSearch::closing_state(const Target& target) {
  constexpr Index reach = kSeamRows;
  Index row = (target.rows - reach % target.rows) % target.rows;
  start(-1);
  for (Index t = 0; t < 2 * reach; ++t) {
    step(target, row, survivors_.data() + t * groups_);
    row = row + 1 == target.rows ? 0 : row + 1;
  }
  const float* cost = cost_.data();
  auto state = static_cast<std::uint32_t>(std::min_element(cost, cost + states_) - cost);
  for (Index t = 2 * reach - 1; t >= reach; --t) {
    state = previous(state, survivors_.data() + t * groups_);
  }
  return state;
}

void ViterbiSearch::search(const float* target_real, const float* target_imag, const float* weight,
                           Index rows, std::uint16_t* states) {
  const Target target{target_real, target_imag, weight, rows};
  const bool memoryless = groups_ == 1;
  std::uint32_t state = memoryless ? 0 : closing_state(target);
  start(memoryless ? -1 : static_cast<std::int64_t>(state));
  for (Index t = 0; t < rows; ++t) step(target, t, survivors_.data() + t * groups_);
  if (memoryless) {
    const float* cost = cost_.data();
    state = static_cast<std::uint32_t>(std::min_element(cost, cost + states_) - cost);
  }
  for (Index t = rows - 1; t >= 0; --t) {
    states[t] = static_cast<std::uint16_t>(state);
    state = previous(state, survivors_.data() + t * groups_);
  }
}

TrellisStates::TrellisStates(const std::uint8_t* packed, Index rows, Index cols,
                             const Trellis& code)
    : rows_(rows),
      codes_(packed, rows, cols, code.code_bits),
      code_(code),
      states_(static_cast<std::size_t>(cols)),
      read_(static_cast<std::size_t>(cols)) {}

const std::vector<std::uint16_t>& TrellisStates::at(Index row) {
  if (row != next_ || row == end_) {
    enter(row);
  } else {
    push(row);
  }
  next_ = row + 1;
  return states_;
}

void TrellisStates::push(Index row) {
  read_codes(codes_.row(row));
  const auto mask = static_cast<std::uint16_t>((1u << code_.state_bits) - 1);
  const int bits = code_.code_bits;
  const std::uint16_t* __restrict read = read_.data();
  std::uint16_t* __restrict states = states_.data();
  for (std::size_t l = 0; l < states_.size(); ++l) {
    states[l] = static_cast<std::uint16_t>(((states[l] << bits) | read[l]) & mask);
  }
}

// The inverse of stored_column and of stored_code for a whole row.
void TrellisStates::read_codes(const std::uint16_t* __restrict stored) {
  const auto n = static_cast<Index>(read_.size()), pairs = column_pairs(n);
  std::uint16_t* __restrict read = read_.data();
  for (Index i = 0; i < pairs; ++i) read[1 + i] = stored[2 * i];
  for (Index i = 0; i < pairs; ++i) read[n - 1 - i] = stored[2 * i + 1];
  read[0] = stored[2 * pairs];
  if (n % 2 == 0) read[n / 2] = stored[2 * pairs + 1];
  if (code_.code_bits == 8) undo_stored_codes();
}

void TrellisStates::undo_stored_codes() {
  const auto& code_of = code_.code_of_stored;
  const std::size_t count = read_.size();
  std::size_t l = 0;
#if defined(LLAVA_FA_HAS_REGISTERS)
  // Zero gives zero, so that the upper bytes of words stay as they are.
  HalfTables::Bytes bytes;
  for (int half = 0; half < kTableSize; ++half) {
    bytes[0][half] = code_of[half];
    bytes[1][half] = code_of[half << 4];
  }
  const HalfTables tables(bytes);
  constexpr std::size_t kAtOnce = kVectorRows / sizeof(std::uint16_t);
  for (; l + kAtOnce <= count; l += kAtOnce) {
    store_bytes(read_.data() + l, tables.look_up(halves_of(load_bytes(read_.data() + l))));
  }
#endif
  for (; l < count; ++l) read_[l] = code_of[read_[l]];
}

// Rebuilds the states from the rows before, circularly within the row's segment.
void TrellisStates::enter(Index row) {
  const Index segment = segment_of(rows_, row);
  const Index begin = segment_begin(rows_, segment);
  end_ = segment_begin(rows_, segment + 1);
  const Index length = end_ - begin;
  const Index depth = ceil_div(code_.state_bits, code_.code_bits);
  std::fill(states_.begin(), states_.end(), std::uint16_t{0});
  for (Index back = depth - 1; back >= 0; --back) {
    push(begin + (row - begin + length - back % length) % length);
  }
}

void CpuBackend::decode_trellis_rows(const std::uint8_t* packed, const std::uint16_t* row_scale,
                                     Index rows, Index cols, const Trellis& code, Index first_row,
                                     Index row_count, int threads, float* real, float* imag) const {
  parallel_for(
      ceil_div(row_count, kRowsPerItem), threads,
      [&] { return TrellisStates(packed, rows, cols, code); },
      [&](Index item, TrellisStates& walk) {
        const Index end = std::min(row_count, (item + 1) * kRowsPerItem);
        for (Index k = item * kRowsPerItem; k < end; ++k) {
          const std::vector<std::uint16_t>& states = walk.at(first_row + k);
          const float scale = half_to_float(row_scale[first_row + k]);
          decode_points(states.data(), cols, code.point_pairs.data(), scale, real + k * cols,
                        imag + k * cols);
        }
      });
}

}  // namespace llava_fa::cpu

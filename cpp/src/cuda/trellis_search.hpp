// The search of the cheapest path through the trellis for every column of every segment, one after
// another by as many blocks as fill a device. Twin of ViterbiSearch in ../cpu/trellis.cpp.
//
// States of a row that have their upper bits in common form a group, which a path enters at the
// least cost of its predecessors, whatever state it takes there. So a step goes from the least
// costs of entering the groups of one row to those of the next:
//   next[u] = min over p of here[s >> code_bits] + distance(s),  s = (p, u) being the states that
// lead to group u, and remembers p. A team of threads shares a group where there are few of them.
//
// 1. The circle closes in the state that a search over the rows around the seam finds there.
// 2. The full search starts and ends in it.
// 3. States follow backwards from what was remembered.
#pragma once

#include <cstdint>

#include "polar_codec.hpp"

namespace llava_fa::cuda {

// The order in which the threads of a search go through the states.
struct SearchOrder {
  static constexpr int kThreads = 256;

  int code_bits;
  int state_bits;

  LLAVA_FA_SHARED int groups() const { return 1 << (state_bits - code_bits); }
  LLAVA_FA_SHARED int branches() const { return 1 << code_bits; }
  LLAVA_FA_SHARED int states() const { return 1 << state_bits; }
  // 2^team_bits() threads share a group, branches q, q + team, ... each.
  LLAVA_FA_SHARED int team_bits() const {
    int bits = 0;
    while (bits < 5 && bits < code_bits && 2 * groups() << bits <= kThreads) ++bits;
    return bits;
  }
  // Place of the state that leads from branch p to group u in a table that neighbouring threads
  // read side by side.
  LLAVA_FA_SHARED int place(int team_bits, int p, int u) const {
    return ((p >> team_bits) * groups() + u) << team_bits | (p & ((1 << team_bits) - 1));
  }
};

// Where searches that run at the same time keep what they remember, a share for each block.
struct SearchMemory {
  std::uint8_t* ways;  // (blocks, rows, groups): the p of each step
  Index rows;          // most steps of a search
  float* costs;        // (blocks, 2, groups); null: in shared memory
};

// What a row asks of the search: a distance |z - c|^2 weight, less what all points have in common,
// is weight c (c - 2 z).
struct SearchTarget {
  float minus_twice_real, minus_twice_imag, weight;
  int closing_state;  // of target 0: where the circle closes

  LLAVA_FA_SHARED static SearchTarget of(Complex z, float weight) {
    return {-2.0f * z.real, -2.0f * z.imag, weight, 0};
  }
};

// Searches by one block, one after another, with points and costs in shared memory or not.
template <bool in_shared>
struct PathSearch {
  static constexpr int kThreads = SearchOrder::kThreads;
  static constexpr int kMostRows = 2 * static_cast<int>(kSegmentRows) - 1;
  static constexpr int kSeamRows = 64;  // on each side of the seam that settle its state

  SearchOrder order;
  const Complex* table;  // (states), in the order of place()
  SearchMemory memory;

  // A block's memory.
  struct Room {
    SearchTarget* targets;
    Candidate* candidates;
    Complex* points;
    float* costs;  // (2, groups), before and after a step in turn
    std::uint8_t* ways;
  };

  static constexpr Index most_steps(Index rows) {
    const Index last = rows - segment_begin(rows, segment_count(rows) - 1);
    return last > 2 * kSeamRows ? last : 2 * kSeamRows;
  }
  static constexpr Index shared_bytes(SearchOrder order) {
    const Index always =
        (kMostRows + 1) * Index{sizeof(SearchTarget)} + kThreads * Index{sizeof(Candidate)};
    const Index points = order.states() * Index{sizeof(Complex)}, costs = 2 * order.groups() * 4;
    return always + (in_shared ? points + costs : 0);
  }

  // Memory from `shared` on, with the points in it.
  template <class Block>
  LLAVA_FA_KERNEL Room room_of(Block& block, void* shared) const {
    Room room;
    room.targets = static_cast<SearchTarget*>(shared);
    room.candidates = reinterpret_cast<Candidate*>(room.targets + kMostRows + 1);
    room.points = reinterpret_cast<Complex*>(room.candidates + kThreads);
    room.costs = in_shared ? reinterpret_cast<float*>(room.points + order.states())
                           : memory.costs + block.index(0) * 2 * order.groups();
    room.ways = memory.ways + block.index(0) * memory.rows * order.groups();
    if constexpr (in_shared) {
      block.phase([&](int thread) {
        for (int s = thread; s < order.states(); s += kThreads) room.points[s] = table[s];
      });
    }
    return room;
  }

  // put_state(t, state) for the cheapest path through rows t < count, given target_of(t).
  template <class Block, class TargetOf, class PutState>
  LLAVA_FA_KERNEL void find(Block& block, const Room& room, int count, TargetOf target_of,
                            PutState put_state) const {
    block.phase([&](int thread) {
      for (int t = thread; t < count; t += kThreads) room.targets[t] = target_of(t);
    });
    const bool memoryless = order.groups() == 1;
    if (!memoryless) {
      start(block, room, false);
      walk(block, room, (count - kSeamRows % count) % count, count, 2 * kSeamRows);
      find_end(block, room, 2 * kSeamRows);
      block.phase([&](int thread) {
        if (thread == 0) close(room);
      });
    }
    start(block, room, !memoryless);
    walk(block, room, 0, count, count);
    if (memoryless) find_end(block, room, count);
    block.phase([&](int thread) {
      if (thread == 0) trace(room, count, put_state);
    });
  }

 private:
  // All groups may be entered, or only that after the closing state.
  template <class Block>
  LLAVA_FA_KERNEL void start(Block& block, const Room& room, bool closing) const {
    block.phase([&](int thread) {
      const int group = room.targets[0].closing_state % order.groups();
      for (int u = thread; u < order.groups(); u += kThreads) {
        room.costs[u] = !closing || u == group ? 0.0f : 1e30f;
      }
    });
  }

  // Steps from row `row` of a segment of `count` rows on, around the circle.
  template <class Block>
  LLAVA_FA_KERNEL void walk(Block& block, const Room& room, int row, int count, int steps) const {
    const int groups = order.groups(), team_bits = order.team_bits();
    for (int t = 0; t < steps; ++t) {
      const float* const here = room.costs + t % 2 * groups;
      float* const next = room.costs + (1 - t % 2) * groups;
      std::uint8_t* const ways = room.ways + Index{t} * groups;
      const auto enter = [&](int u, Candidate found) {
        next[u] = found.cost;
        ways[u] = static_cast<std::uint8_t>(found.way);
      };
      if (team_bits == 0) {
        block.phase([&](int thread) {
          for (int u = thread; u < groups; u += kThreads) {
            enter(u, least_branch(room, here, room.targets[row], u, 0, 0));
          }
        });
      } else {
        const int others = (1 << team_bits) - 1;
        typename Block::template PerThread<Candidate> found;
        block.start([&](int thread) {
          const int u = thread >> team_bits;
          found[thread] = {1e38f, 0};
          if (u < groups) {
            found[thread] =
                least_branch(room, here, room.targets[row], u, thread & others, team_bits);
          }
        });
        block.least(1 << team_bits, found);
        block.phase([&](int thread) {
          const int u = thread >> team_bits;
          if ((thread & others) == 0 && u < groups) enter(u, found[thread]);
        });
      }
      row = row + 1 == count ? 0 : row + 1;
    }
  }

  // The cheapest of branches first, first + team, ... to group u.
  LLAVA_FA_KERNEL Candidate least_branch(const Room& room, const float* here,
                                         const SearchTarget& target, int u, int first,
                                         int team_bits) const {
    const Complex* const points = (in_shared ? room.points : table) + (u << team_bits) + first;
    const int state = first * order.groups() + u, step = order.groups() << team_bits;
    const int bits = order.code_bits;
    Candidate found;
    if (step >> bits > 0) {  // then each state is that many groups after the one before
      const float* const costs = here + (state >> bits);
      const int groups = step >> bits;
      found = least_of(points, step, target, order.branches() >> team_bits,
                       [costs, groups](int i) { return costs[i * groups]; });
    } else {
      found = least_of(points, step, target, order.branches() >> team_bits,
                       [=](int i) { return here[(state + i * step) >> bits]; });
    }
    return {found.cost, (found.way << team_bits) + first};
  }

  // The cheapest of `count` branches, whose points are `step` apart and whose states are entered at
  // cost_of(i).
  template <class CostOf>
  LLAVA_FA_KERNEL static Candidate least_of(const Complex* points, int step,
                                            const SearchTarget& target, int count, CostOf cost_of) {
    const Complex minus_twice = {target.minus_twice_real, target.minus_twice_imag};
    Candidate found = {3e38f, 0};
    LLAVA_FA_UNROLL_BY_4
    for (int i = 0; i < count; ++i) {
      const Complex c = points[i * step];
      const float distance =
          multiply_add(c.imag, c.imag + minus_twice.imag, c.real * (c.real + minus_twice.real));
      const float cost = multiply_add(target.weight, distance, cost_of(i));
      if (cost < found.cost) found = {cost, i};
    }
    return found;
  }

  // The cheapest last state after so many steps, as closing_state.
  template <class Block>
  LLAVA_FA_KERNEL void find_end(Block& block, const Room& room, int steps) const {
    const float* const costs = room.costs + steps % 2 * order.groups();
    block.phase([&](int thread) {
      Candidate found = {3e38f, 0};
      for (int u = thread; u < order.groups(); u += kThreads) {
        found = cheaper(found, {costs[u], u});
      }
      room.candidates[thread] = found;
    });
    join_all(block, room.candidates, [](Candidate a, Candidate b) { return cheaper(a, b); });
    block.phase([&](int thread) {
      if (thread == 0) {
        const int u = room.candidates[0].way;
        room.targets[0].closing_state = leading_state(room, steps - 1, u);
      }
    });
  }

  // The state at a step from which the path goes on to group u.
  LLAVA_FA_KERNEL int leading_state(const Room& room, int step, int u) const {
    return room.ways[Index{step} * order.groups() + u] * order.groups() + u;
  }

  // From the last state of the search around the seam back to the seam.
  LLAVA_FA_KERNEL void close(const Room& room) const {
    int state = room.targets[0].closing_state;
    for (int t = 2 * kSeamRows - 1; t >= kSeamRows; --t) {
      state = leading_state(room, t - 1, state >> order.code_bits);
    }
    room.targets[0].closing_state = state;
  }

  template <class PutState>
  LLAVA_FA_KERNEL void trace(const Room& room, int count, PutState put_state) const {
    int state = room.targets[0].closing_state;
    for (int t = count - 1; t >= 0; --t) {
      put_state(t, state);
      if (t > 0) state = leading_state(room, t - 1, state >> order.code_bits);
    }
  }
};

// All columns of all segments, which do not depend on each other.
template <bool in_shared>
struct TrellisSearch {
  static constexpr int kThreads = SearchOrder::kThreads;
  static constexpr int kMinBlocks = 4;

  PathSearch<in_shared> path;
  const Complex* spectrum;  // (rows, cols)
  Index rows;
  Index cols;
  const float* sizes;     // (rows)
  std::uint16_t* states;  // (rows, cols)

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const auto room = path.room_of(block, block.template shared<void>());
    const Index searches = cols * segment_count(rows);
    for (Index i = block.index(0); i < searches; i += block.count(0)) {
      const Index segment = i / cols, column = i % cols, begin = segment_begin(rows, segment);
      path.find(
          block, room, static_cast<int>(segment_begin(rows, segment + 1) - begin),
          [&](int t) {
            const float size = sizes[begin + t], inverse = size > 0.0f ? 1.0f / size : 0.0f;
            return SearchTarget::of(inverse * spectrum[(begin + t) * cols + column], size * size);
          },
          [&](int t, int state) {
            states[(begin + t) * cols + column] = static_cast<std::uint16_t>(state);
          });
    }
  }
};

}  // namespace llava_fa::cuda

// Sums and least values over the threads of a block, always in the same tree.
#pragma once

#include "host_device.hpp"

namespace llava_fa::cuda {

// values[0] = join of what the kThreads threads have in shared memory, for all of them.
template <typename T, class Block, class Join>
LLAVA_FA_KERNEL void join_all(Block& block, T* values, Join join) {
  for (int step = Block::kThreads / 2; step >= 1; step /= 2) {
    block.phase([&](int thread) {
      if (thread < step) values[thread] = join(values[thread], values[thread + step]);
    });
  }
}

// One of several ways, and its cost.
struct Candidate {
  float cost;
  int way;
};

// The cheaper one; of equal ones that with the lower number, so that the order does not matter.
LLAVA_FA_SHARED Candidate cheaper(Candidate a, Candidate b) {
  return b.cost < a.cost || (b.cost == a.cost && b.way < a.way) ? b : a;
}

}  // namespace llava_fa::cuda

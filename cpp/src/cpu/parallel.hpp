// Loops over independent items on several threads. Items have a fixed size, so that what each one
// computes, and therefore every result bit, is independent of the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

// Work below which a further thread costs more than it saves: waking it and waiting for it takes
// tens of microseconds, but milliseconds while other programs want the processor.
constexpr double kLeastNanosecondsPerThread = 1e6;

// The same for one step of many that follow each other at once, as layers of a model do: threads
// then still wait for work without sleeping.
constexpr double kLeastNanosecondsPerThreadOfStep = 2e4;

// How many of `threads` to use for work that takes one of them roughly `nanoseconds`. Results do
// not depend on it, so an estimate within a factor of a few is good enough.
inline int worthwhile_threads(int threads, double nanoseconds,
                              double least_per_thread = kLeastNanosecondsPerThread) {
  const double worthwhile = nanoseconds / least_per_thread;
  return worthwhile < threads ? std::max(1, static_cast<int>(worthwhile)) : threads;
}

inline int step_threads(int threads, double nanoseconds) {
  return worthwhile_threads(threads, nanoseconds, kLeastNanosecondsPerThreadOfStep);
}

// body(item, state) for item in [0, items), with state = make_state() once per thread. The first
// exception (memory that could not be had, say) stops the loop and is rethrown in the caller.
template <typename MakeState, typename Body>
void parallel_for(Index items, int threads, MakeState make_state, Body body) {
  std::atomic<Index> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
#pragma omp parallel num_threads(threads) if (threads > 1 && items > 1)
  {
    try {
      auto state = make_state();
      for (Index item = next++; item < items; item = next++) body(item, state);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = items;
    }
  }
  if (failure) std::rethrow_exception(failure);
}

template <typename Body>
void parallel_for(Index items, int threads, Body body) {
  parallel_for(items, threads, [] { return 0; }, [&](Index item, int) { body(item); });
}

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace llava_fa::cpu

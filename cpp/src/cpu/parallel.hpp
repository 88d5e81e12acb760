// Loops over independent items on several threads. Items have a fixed size, so that what each one
// computes, and therefore every result bit, is independent of the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "../process.hpp"
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

// Whether OpenMP may supply the threads. LLAVA_FA_OWN_THREADS is for the thread sanitizer, which
// does not see how OpenMP's threads wait for each other.
inline bool openmp_works() {
#ifdef LLAVA_FA_OWN_THREADS
  return false;
#else
  return !in_forked_process();
#endif
}

// job() on `count` threads at once, the caller's among them; on fewer if the system has no more.
template <typename Job>
void run_on_threads(int count, const Job& job) {
  if (count <= 1) return job();
  if (openmp_works()) {
#pragma omp parallel num_threads(count)
    job();
    return;
  }
  std::vector<std::jthread> others;  // joined at the end of the scope
  others.reserve(static_cast<std::size_t>(count - 1));
  try {
    while (static_cast<int>(others.size()) < count - 1) others.emplace_back([&job] { job(); });
  } catch (const std::system_error&) {
  }
  job();
}

// body(item, state) for item in [0, items), with state = make_state() once per thread. The first
// exception (memory that could not be had, say) stops the loop and is rethrown in the caller.
template <typename MakeState, typename Body>
void parallel_for(Index items, int threads, MakeState make_state, Body body) {
  std::atomic<Index> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  run_on_threads(items > 1 ? threads : 1, [&] {
    try {
      auto state = make_state();
      // Relaxed: items share nothing that the counter would have to order.
      const auto claim = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
      for (Index item = claim(); item < items; item = claim()) body(item, state);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = items;
    }
  });
  if (failure) std::rethrow_exception(failure);
}

template <typename Body>
void parallel_for(Index items, int threads, Body body) {
  parallel_for(items, threads, [] { return 0; }, [&](Index item, int) { body(item); });
}

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace llava_fa::cpu

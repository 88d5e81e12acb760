// Marks of functions that kernels and host code share. nvcc compiles them for both sides; any other
// compiler sees plain C++, so that tests run kernels on the host (tests/cpp/host_block.hpp).
//
// A kernel is a struct of arguments whose operator() takes a Block, its view of the thread block:
//   block.index(axis), block.count(axis)   place in the grid, axis 0 or 1, and the grid's extent
//   block.shared<T>()                      the block's dynamic shared memory
//   block.phase(f)                         f(thread) in every thread, then a barrier
//   block.start(f)                         the same without the barrier
//   block.warps(f)                         f(warp) in all lanes of every warp, then a barrier
//   block.least(team, values)              the least of every `team` neighbours for all of them, in
//                                          a PerThread of candidates; team <= 32, a power of two
//   PerThread<T>, PerWarp<T>               what threads or warps keep from phase to phase
// and, for products of tiles, those of panel_product.hpp. Between phases code is uniform: every
// thread computes the same. So barriers can be nowhere but at the end of a phase, and the host runs
// the threads of a phase one after another, in any order.
#pragma once

#include "../device_callable.hpp"

#if defined(__CUDACC__)
#define LLAVA_FA_KERNEL __device__ inline  // bodies, over a Block
#define LLAVA_FA_UNROLL _Pragma("unroll")
#define LLAVA_FA_UNROLL_BY_4 _Pragma("unroll 4")
#define LLAVA_FA_KEEP_LOOP _Pragma("unroll 1")
#else
#define LLAVA_FA_KERNEL inline
#define LLAVA_FA_UNROLL
#define LLAVA_FA_UNROLL_BY_4
#define LLAVA_FA_KEEP_LOOP
#endif

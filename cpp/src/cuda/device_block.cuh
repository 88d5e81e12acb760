// The Block of host_device.hpp on a device: this thread's view of its thread block.
#pragma once

#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <mma.h>

#include "llava_fa/types.hpp"
#include "number_types.hpp"
#include "reduction.hpp"

namespace llava_fa::cuda {

extern __shared__ __align__(128) std::byte dynamic_shared_memory[];

template <int threads>
class DeviceBlock {
 public:
  static constexpr int kThreads = threads;
  static constexpr int kTile = 16;
  static constexpr unsigned kAllLanes = 0xffffffff;

  __device__ Index index(int axis) const { return axis == 0 ? blockIdx.x : blockIdx.y; }
  __device__ Index count(int axis) const { return axis == 0 ? gridDim.x : gridDim.y; }
  template <typename T>
  __device__ T* shared() const {
    return reinterpret_cast<T*>(dynamic_shared_memory);
  }

  template <typename Body>
  __device__ void start(Body body) {
    body(static_cast<int>(threadIdx.x));
  }
  template <typename Body>
  __device__ void phase(Body body) {
    start(body);
    barrier();
  }
  template <typename Body>
  __device__ void warps(Body body) {
    body(static_cast<int>(threadIdx.x / 32));
    barrier();
  }

  // What a thread keeps: every thread has its own, whatever the index.
  template <typename T>
  class Own {
   public:
    __device__ T& operator[](int) { return value_; }

   private:
    T value_;
  };
  template <typename T>
  using PerThread = Own<T>;
  template <typename T>
  using PerWarp = Own<T>;

  __device__ void least(int team, Own<Candidate>& values) {
    Candidate& own = values[0];
    for (int distance = team / 2; distance >= 1; distance /= 2) {
      const Candidate other = {__shfl_xor_sync(kAllLanes, own.cost, distance),
                               __shfl_xor_sync(kAllLanes, own.way, distance)};
      own = cheaper(own, other);
    }
  }

  using LeftTile = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, kTile, kTile, kTile, __half,
                                          nvcuda::wmma::row_major>;
  using RightTile = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, kTile, kTile, kTile, __half,
                                           nvcuda::wmma::col_major>;
  struct SumTile {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kTile, kTile, kTile, float> entries;

    __device__ SumTile() { nvcuda::wmma::fill_fragment(entries, 0.0f); }
  };

  template <class Tile>
  __device__ void load(int pitch, const Half* from, Tile& tile) {
    nvcuda::wmma::load_matrix_sync(tile, reinterpret_cast<const __half*>(from), pitch);
  }
  __device__ void multiply_add(const LeftTile& left, const RightTile& right, SumTile& sum) {
    nvcuda::wmma::mma_sync(sum.entries, left, right, sum.entries);
  }
  __device__ void store(const SumTile& sum, float* to, int pitch) {
    nvcuda::wmma::store_matrix_sync(to, sum.entries, pitch, nvcuda::wmma::mem_col_major);
  }
  __device__ void copy16(Half* to, const Half* from) { __pipeline_memcpy_async(to, from, 16); }

 private:
  __device__ void barrier() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
  }
};

}  // namespace llava_fa::cuda

// The one __global__ function, and its launch.
#pragma once

#include "device_block.cuh"
#include "launch.hpp"

namespace llava_fa::cuda {

inline constexpr Index kSharedWithoutAsking = 48 << 10;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    run(const __grid_constant__ Kernel kernel) {
  DeviceBlock<Kernel::kThreads> block;
  kernel(block);
}

template <class Kernel>
void prepare(const Kernel&, Index shared_bytes, Index shared_limit) {
  cudaFuncAttributes attributes;
  require_success(cudaFuncGetAttributes(&attributes, run<Kernel>), "loading a kernel");
  if (shared_bytes <= kSharedWithoutAsking) return;
  require_success(cudaFuncSetAttribute(run<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared_limit)),
                  "asking for shared memory");
}

template <class Kernel>
void launch(const Kernel& kernel, Index grid_x, Index grid_y, Index shared_bytes,
            cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y));
  run<Kernel><<<grid, Kernel::kThreads, static_cast<std::size_t>(shared_bytes), stream>>>(kernel);
  require_success(cudaGetLastError(), "starting a kernel");
}

// Compiles a kernel where it stands.
#define LLAVA_FA_COMPILE_KERNEL(...)                       \
  template void prepare(const __VA_ARGS__&, Index, Index); \
  template void launch(const __VA_ARGS__&, Index, Index, Index, cudaStream_t);

}  // namespace llava_fa::cuda

// Queueing a kernel on a stream; defined in launch.cuh, for the kernels that the .cu files name.
#pragma once

#include <cuda_runtime_api.h>

#include "llava_fa/types.hpp"

namespace llava_fa::cuda {

// Loads a kernel to the current device, which must not happen while a graph is captured, and allows
// it as much shared memory as the device has, if it asks for more than it may have unasked.
// Throws Error(device) if the device refuses.
template <class Kernel>
void prepare(const Kernel& kernel, Index shared_bytes, Index shared_limit);

// Throws Error(device) if the device refuses.
template <class Kernel>
void launch(const Kernel& kernel, Index grid_x, Index grid_y, Index shared_bytes,
            cudaStream_t stream);

// Throws Error(device), with what was tried, unless the status is success.
void require_success(cudaError_t status, const char* what);

}  // namespace llava_fa::cuda

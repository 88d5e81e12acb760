// Marks functions of numbers that host code and kernels share: nvcc compiles them for both sides.
#pragma once

#if defined(__CUDACC__)
#define LLAVA_FA_SHARED __host__ __device__ inline
#else
#define LLAVA_FA_SHARED inline
#endif

// Kernels of spectrum.hpp.
#include "spectrum.hpp"

#include "launch.cuh"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(SpectrumKernel)
LLAVA_FA_COMPILE_KERNEL(InverseSpectrumKernel)

}  // namespace llava_fa::cuda

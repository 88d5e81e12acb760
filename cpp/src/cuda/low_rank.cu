// Kernels of linalg.hpp, decomposition.hpp and elementwise.hpp.
#include "decomposition.hpp"
#include "elementwise.hpp"
#include "launch.cuh"
#include "linalg.hpp"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(Multiply)
LLAVA_FA_COMPILE_KERNEL(MultiplyAdjoint)
LLAVA_FA_COMPILE_KERNEL(SubtractLowRank)
LLAVA_FA_COMPILE_KERNEL(Gram)
LLAVA_FA_COMPILE_KERNEL(Triangle)
LLAVA_FA_COMPILE_KERNEL(SubtractCodes)

}  // namespace llava_fa::cuda

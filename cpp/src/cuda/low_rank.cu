// Kernels of linalg.hpp, decomposition.hpp, elementwise.hpp and feedback_filter.hpp.
#include "decomposition.hpp"
#include "elementwise.hpp"
#include "feedback_filter.hpp"
#include "launch.cuh"
#include "linalg.hpp"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(Multiply)
LLAVA_FA_COMPILE_KERNEL(MultiplyAdjoint)
LLAVA_FA_COMPILE_KERNEL(SubtractLowRank)
LLAVA_FA_COMPILE_KERNEL(Gram)
LLAVA_FA_COMPILE_KERNEL(Triangle)
LLAVA_FA_COMPILE_KERNEL(SubtractCodes)
LLAVA_FA_COMPILE_KERNEL(ApplyFilter)

}  // namespace llava_fa::cuda

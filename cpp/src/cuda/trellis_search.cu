// Kernels of trellis_search.hpp.
#include "trellis_search.hpp"

#include "launch.cuh"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(TrellisSearch<true>)
LLAVA_FA_COMPILE_KERNEL(TrellisSearch<false>)

}  // namespace llava_fa::cuda

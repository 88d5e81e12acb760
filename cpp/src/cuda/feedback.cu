// Kernels of feedback.hpp.
#include "feedback.hpp"

#include "launch.cuh"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(FeedbackTargets)
LLAVA_FA_COMPILE_KERNEL(EncodeBlock<NearestChooser>)
LLAVA_FA_COMPILE_KERNEL(EncodeBlock<PathChooser<true>>)
LLAVA_FA_COMPILE_KERNEL(EncodeBlock<PathChooser<false>>)

}  // namespace llava_fa::cuda

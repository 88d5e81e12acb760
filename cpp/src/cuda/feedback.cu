// Kernels of feedback_filter.hpp and feedback.hpp.
#include "feedback.hpp"

#include "launch.cuh"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(AssembleMoment)
LLAVA_FA_COMPILE_KERNEL(FactorTile)
LLAVA_FA_COMPILE_KERNEL(UpdateTrailing)
LLAVA_FA_COMPILE_KERNEL(FillFilter)
LLAVA_FA_COMPILE_KERNEL(ApplyFilter)
LLAVA_FA_COMPILE_KERNEL(FeedbackTargets)
LLAVA_FA_COMPILE_KERNEL(EncodeBlock<NearestChooser>)
LLAVA_FA_COMPILE_KERNEL(EncodeBlock<PathChooser<true>>)
LLAVA_FA_COMPILE_KERNEL(EncodeBlock<PathChooser<false>>)

}  // namespace llava_fa::cuda

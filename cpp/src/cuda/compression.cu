// Kernels of scaled_weight.hpp, half_spectrum.hpp and polar_codec.hpp.
#include "half_spectrum.hpp"
#include "launch.cuh"
#include "polar_codec.hpp"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(RowEnergies)
LLAVA_FA_COMPILE_KERNEL(ColumnEnergies)
LLAVA_FA_COMPILE_KERNEL(ColumnSpectra)
LLAVA_FA_COMPILE_KERNEL(RowSpectra)
LLAVA_FA_COMPILE_KERNEL(InverseColumnSpectra)
LLAVA_FA_COMPILE_KERNEL(RowSizes)
LLAVA_FA_COMPILE_KERNEL(NearestPoints)
LLAVA_FA_COMPILE_KERNEL(RowSums)
LLAVA_FA_COMPILE_KERNEL(PackRows)
LLAVA_FA_COMPILE_KERNEL(DecodeRows)

}  // namespace llava_fa::cuda

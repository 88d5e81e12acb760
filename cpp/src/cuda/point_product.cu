// Kernels of point_product.hpp for constellations.
#include "point_product.hpp"

#include "launch.cuh"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 1>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 2>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 3>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 4>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 5>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 6>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 7>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 8>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 9>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<ConstellationTable, 10>)

}  // namespace llava_fa::cuda

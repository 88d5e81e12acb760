// Kernels of point_product.hpp for the trellis.
#include "launch.cuh"
#include "point_product.hpp"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(PointProduct<TrellisTable, 1>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<TrellisTable, 2>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<TrellisTable, 3>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<TrellisTable, 4>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<TrellisTable, 5>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<TrellisTable, 6>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<TrellisTable, 7>)
LLAVA_FA_COMPILE_KERNEL(PointProduct<TrellisTable, 8>)

}  // namespace llava_fa::cuda

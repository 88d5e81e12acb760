// Kernels of point_product.hpp for constellations.
#include "point_product.hpp"

#include "launch.cuh"

namespace llava_fa::cuda {

#define LLAVA_FA_INSTANTIATE(code_bits)                                                         \
  template void launch(const PointProduct<ConstellationTable, code_bits>&, Index, Index, Index, \
                       cudaStream_t);
LLAVA_FA_INSTANTIATE(1)
LLAVA_FA_INSTANTIATE(2)
LLAVA_FA_INSTANTIATE(3)
LLAVA_FA_INSTANTIATE(4)
LLAVA_FA_INSTANTIATE(5)
LLAVA_FA_INSTANTIATE(6)
LLAVA_FA_INSTANTIATE(7)
LLAVA_FA_INSTANTIATE(8)
LLAVA_FA_INSTANTIATE(9)
LLAVA_FA_INSTANTIATE(10)
#undef LLAVA_FA_INSTANTIATE

}  // namespace llava_fa::cuda

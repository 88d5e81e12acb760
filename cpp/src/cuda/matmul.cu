// Kernels of folding.hpp, panel_product.hpp and low_rank.hpp.
#include "folding.hpp"
#include "launch.cuh"
#include "low_rank.hpp"
#include "panel_product.hpp"

namespace llava_fa::cuda {

LLAVA_FA_COMPILE_KERNEL(FoldActivations)
LLAVA_FA_COMPILE_KERNEL(DecodePanels<ConstellationTable>)
LLAVA_FA_COMPILE_KERNEL(DecodePanels<TrellisTable>)
LLAVA_FA_COMPILE_KERNEL(PanelProduct<1>)
LLAVA_FA_COMPILE_KERNEL(PanelProduct<2>)
LLAVA_FA_COMPILE_KERNEL(LowRankInner)
LLAVA_FA_COMPILE_KERNEL(LowRankOuter)

}  // namespace llava_fa::cuda

// Kernels of folding.hpp, panel_product.hpp and low_rank.hpp.
#include "folding.hpp"
#include "launch.cuh"
#include "low_rank.hpp"
#include "panel_product.hpp"

namespace llava_fa::cuda {

template void launch(const FoldActivations&, Index, Index, Index, cudaStream_t);
template void launch(const DecodePanels<ConstellationTable>&, Index, Index, Index, cudaStream_t);
template void launch(const DecodePanels<TrellisTable>&, Index, Index, Index, cudaStream_t);
template void launch(const PanelProduct<1>&, Index, Index, Index, cudaStream_t);
template void launch(const PanelProduct<2>&, Index, Index, Index, cudaStream_t);
template void launch(const LowRankInner&, Index, Index, Index, cudaStream_t);
template void launch(const LowRankOuter&, Index, Index, Index, cudaStream_t);

}  // namespace llava_fa::cuda

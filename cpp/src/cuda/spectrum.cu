// Kernels of spectrum.hpp.
#include "spectrum.hpp"

#include "launch.cuh"

namespace llava_fa::cuda {

template void launch(const SpectrumKernel&, Index, Index, Index, cudaStream_t);
template void launch(const InverseSpectrumKernel&, Index, Index, Index, cudaStream_t);

}  // namespace llava_fa::cuda

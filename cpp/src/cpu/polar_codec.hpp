// Nearest points of a constellation for a run of entries: shared by rows and columns.
#pragma once

#include <cstdint>

#include "llava_fa/constellation.hpp"

namespace llava_fa::cpu {

// codes[l] = index of the point nearest to (real[l], imag[l]) · inverse_scale, for l < count.
void encode_run(const float* real, const float* imag, Index count, float inverse_scale,
                const Constellation& points, std::uint16_t* codes);

}  // namespace llava_fa::cpu

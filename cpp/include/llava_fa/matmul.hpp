// Activations times packed matrix without materializing the dense weight (design section 1,
// "Run time without complex arithmetic overhead").
#pragma once

#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

// y = x Wᵀ for x (batch, n) and y (batch, m), both float32 row-major.
//
// In the real Fourier basis the matrix is a real m x n matrix T, decoded panel by panel:
// activations through a length-n real FFT, real products with the panels (m·n multiplications per
// token, as many as dense), one inverse real FFT of length m. Temporary memory: one panel plus 3
// activations. Throws Error(invalid_argument) if x has another width.
void matmul(const PackedMatrix& matrix, const MatrixView& activations, float* output);

}  // namespace llava_fa

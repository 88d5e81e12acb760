// Activations times packed matrix without materializing the dense weight (design section 1,
// "Run time without complex arithmetic overhead").
#pragma once

#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa {

// What products may cost: `single` agrees with the decoded matrix to 1e-5, like float32; `half` to
// 1e-3, no more than rounding to bfloat16 changes, and is faster for few activations. `bfloat16`
// is `half`, but where the processor multiplies numbers of bfloat16 (AVX512-BF16), many activations
// and the matrix are rounded to it: to 5e-3 (typically 2e-3), and faster.
enum class Precision { single, half, bfloat16 };

// How many activations are multiplied at once. More would hardly decode less, but their spectra and
// sums would leave the caches.
inline constexpr Index kActivationsAtOnce = 192;

// y = x Wᵀ for x (batch, n) and y (batch, m), both float32 row-major.
//
// Few activations are multiplied with the codes themselves: none of the matrix is decoded to
// memory. For many, in the real Fourier basis the matrix is a real m x n matrix T, decoded block by
// block: activations through a length-n real FFT, real products with the blocks (m·n
// multiplications per token, as many as dense), one inverse real FFT of length m. Temporary memory:
// some hundred kB per thread plus 4 times the activations that are multiplied at once. Throws
// Error(invalid_argument) if x has another width.
void matmul(const PackedMatrix& matrix, const MatrixView& activations, float* output,
            Precision precision = Precision::single);

}  // namespace llava_fa

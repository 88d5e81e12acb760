// What randomized truncated SVDs share, wherever the matrix lies (cuda/subspace_pipeline.hpp).
#pragma once

#include <algorithm>
#include <cstdint>

#include "llava_fa/types.hpp"

namespace llava_fa {

// Columns of the block of a matrix of this shape.
inline Index subspace_columns(Index rank, Index oversampling, Index rows, Index cols) {
  return std::min(rank + oversampling, std::min(rows, cols));
}

// (rows, block): the warm start's adjoint in the first columns, up to a row of zeros, which with
// those after it knows nothing; random ones in the others.
ComplexMatrix starting_block(Index rows, Index block, std::uint64_t seed,
                             const ComplexMatrix* warm_start);

ComplexMatrix adjoint(const ComplexMatrix& matrix);
ComplexMatrix leading_columns(const ComplexMatrix& matrix, Index count);

}  // namespace llava_fa

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

// Throws Error(invalid_argument) unless a complex matrix of this shape has that many singular
// values.
void check_rank(Index rank, Index rows, Index cols);
// The same for what else randomized_svd() is given, for a matrix of `cols` columns.
void check_subspace(int power_iterations, Index oversampling, const ComplexMatrix* warm_start,
                    Index cols);

// (rows, block): the warm start's adjoint in the first columns, up to a row of zeros, which with
// those after it knows nothing; random ones in the others.
ComplexMatrix starting_block(Index rows, Index block, std::uint64_t seed,
                             const ComplexMatrix* warm_start);

ComplexMatrix adjoint(const ComplexMatrix& matrix);
ComplexMatrix leading_columns(const ComplexMatrix& matrix, Index count);

}  // namespace llava_fa

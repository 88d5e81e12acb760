// Truncated singular value decomposition of complex matrices (design section 2).
#pragma once

#include <cstdint>
#include <vector>

#include "llava_fa/types.hpp"

namespace llava_fa {

// A ≈ left_vectors · diag(singular_values) · right_vectors.
struct TruncatedSvd {
  ComplexMatrix left_vectors;          // (rows, rank), orthonormal columns
  std::vector<float> singular_values;  // rank, descending
  ComplexMatrix right_vectors;         // (rank, cols), orthonormal rows
};

// Extra columns that bring the error within 1 % of the optimum even for flat spectra.
constexpr Index default_oversampling(Index rank) { return 10 + rank / 2; }

struct SvdOptions {
  Index rank = 1;            // 1 .. min(rows, cols)
  int power_iterations = 2;  // passes A^H A over the random block (Halko, Martinsson, Tropp 2011)
  Index oversampling = 10;   // extra columns of the block
  std::uint64_t seed = 0;    // of the random block
};

// Randomized block subspace iteration. With `warm_start` ((rank', cols), rank' >= 1) the block
// starts from those right vectors instead of random ones, topped up with random columns.
// Throws Error(invalid_argument) if rank or options are out of range.
TruncatedSvd randomized_svd(const ComplexMatrix& matrix, const SvdOptions& options,
                            const ComplexMatrix* warm_start = nullptr);

// Reference: full decomposition in double precision, truncated to `rank`. Cost O(rows·cols·min).
TruncatedSvd exact_svd(const ComplexMatrix& matrix, Index rank);

}  // namespace llava_fa

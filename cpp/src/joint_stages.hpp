// Joint low rank and codes wherever the spectrum lies: what the alternation of joint_solver.cpp
// asks of the host's memory or of a device's (cuda/joint_pipeline.hpp).
#pragma once

#include <optional>

#include "llava_fa/joint_solver.hpp"
#include "llava_fa/low_rank.hpp"

namespace llava_fa {

// The low-rank part L = L1 L2 as stored; both empty if there is none.
struct Factors {
  StoredFactor left;
  StoredFactor right;

  bool empty() const { return left.decoded.count() == 0; }
};

// What an error costs under the weight, and what coding nothing would.
struct CodingCost {
  double error = 0;
  double energy = 0;
};

// Holds a spectrum Ã, the weight R, and codes Q, at first none.
class JointStages {
 public:
  virtual ~JointStages() = default;

  // ||Ã R||^2.
  virtual double energy() = 0;
  // Truncated SVD of (Ã - Q) R, as randomized_svd().
  virtual TruncatedSvd decompose(const SvdOptions& options, const ComplexMatrix* warm_start) = 0;
  // Uᴴ (Ã - Q) (rank, cols), U (rows, rank), if R is a filter; else nothing.
  virtual std::optional<ComplexMatrix> project(const ComplexMatrix& left_vectors) = 0;
  // Finds codes of Ã - L; not yet Q.
  virtual CodingCost encode(const Factors& factors) = 0;
  // The codes found last become Q.
  virtual void keep() = 0;
  // ||(Ã - Q - L) R||^2.
  virtual double error(const Factors& factors) = 0;
  // Q, to be stored. With `unbiased` each row scale is enlarged until Q carries all of Ã - L,
  // except under a filter: there codes are found unbiased in every direction (code_book.hpp), and
  // what its metric would see of them misses the directions of little input.
  virtual PolarCodes codes(const Factors& factors, bool unbiased) = 0;
};

// solve_joint() of a spectrum, stage by stage, with the column weights of R = diag(d) or none.
// Options are checked before.
JointSolution alternate(JointStages& stages, const JointOptions& options,
                        std::span<const float> column_weight);

// Extra columns of the block that finds a low rank. Fewer than default_oversampling: every pass
// pays for them, and a pass starts from where the last one ended, so that a subspace not found at
// once is found on the way.
inline constexpr Index kJointOversampling = 10;

}  // namespace llava_fa

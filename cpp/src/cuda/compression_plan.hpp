// What compressing a matrix needs on a device: constants, and where intermediate results are. Host
// code; the kernels run in compression_pipeline.hpp.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "../code_book.hpp"
#include "../joint_stages.hpp"
#include "arena.hpp"
#include "decomposition.hpp"
#include "elementwise.hpp"
#include "feedback.hpp"
#include "fft_plan.hpp"
#include "linalg.hpp"
#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/spectrum.hpp"

namespace llava_fa::cuda {

// Searches of the trellis that run at the same time: what fills a device, unless they need more
// than so much memory for what they remember. Under feedback, one for each segment.
inline constexpr Index kMostSearches = 1056;
inline constexpr Index kMostSearchBytes = Index{1} << 28;

// Places of what a randomized truncated SVD works with, by subspace_pipeline.hpp.
struct SubspaceLayout {
  Index columns = 0;                              // of a block
  Index basis = 0, co_basis = 0;                  // (half rows or cols, columns) Complex
  Index spare = 0;                                // the larger one of these
  Index gram = 0;                                 // (columns, columns) ComplexDouble
  Index first_triangle = 0, second_triangle = 0;  // likewise
  Index small = 0;                                // (columns, columns) Complex
};

class CompressionPlan {
 public:
  // shared_limit: bytes of shared memory that a block can have; oversampling: of truncated SVDs.
  CompressionPlan(Index rows, Index cols, const CompressionOptions& options, Index shared_limit,
                  Index oversampling = kJointOversampling);

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index half_rows() const { return llava_fa::half_rows(rows_); }
  Codec codec() const { return codec_; }
  int code_bits() const { return code_bits_; }
  int state_bits() const { return state_bits_; }
  Index rank() const { return rank_; }
  Index packed_bytes() const { return half_rows() * packed_row_bytes(cols_, code_bits_); }

  std::span<const std::byte> constants() const { return constants_; }
  // Places of the constants, from their first on.
  struct Places {
    Index table = 0;  // points as Complex, by code or state
    Index rings = 0;  // of a constellation
    Index point_code = 0;
    Index search_table = 0;  // of a trellis: points in the order of a search
    Index stored_code = 0;
    Index code_of_stored = 0;
  };
  const Places& places() const { return places_; }
  int ring_count() const { return ring_count_; }
  const RealFftTables& column_transform() const { return columns_; }
  const FftTables& row_transform() const { return rows_transform_; }
  // Of the columns of a second moment.
  const RealFftTables& moment_transform() const { return moment_columns_; }
  Index shared_limit() const { return shared_limit_; }

  CodeBook code_book() const { return {codec_, code_bits_, state_bits_}; }

  // Of a trellis; under feedback a column's searches wait for those of the column before.
  SearchOrder search_order() const { return {code_bits_, state_bits_}; }
  Index search_blocks(bool fed_back) const;
  bool searches_in_shared(bool fed_back) const;

  // Places of intermediate results in the workspace.
  struct Layout {
    Index constants = 0;
    Index row_multiplier = 0, col_multiplier = 0;  // float
    Index column_weight = 0, squared_weight = 0;   // (cols) float
    Index row_energies = 0, col_energies = 0;      // double
    Index spectrum = 0;                            // (half rows, cols) Complex
    Index transforms = 0;  // buffers of transforms that are too long for shared memory
    Index sizes = 0;       // (half rows) float
    Index points = 0;      // (half rows, cols) std::uint16_t
    Index sums = 0;        // (half rows) RowSum
    Index packed = 0;
    Index ways = 0, costs = 0;  // of searches
    // Under feedback:
    Index filter = 0, diagonal = 0;  // float, as FeedbackFilter has them
    Index moment_spectrum = 0;       // (half of cols, cols) Complex
    Index factor = 0;                // (cols, cols) Complex
    Index factor_inverse = 0;        // (kFilterBlock, kFilterBlock) Complex
    Index factor_failed = 0;         // int
    Index errors = 0;                // (half rows, cols) Complex
    Index targets = 0;               // (2, kFilterBlock, half rows) Complex
    Index fed_back_sums = 0;         // (half rows) FedBackSum
    // With a low rank:
    Index residual = 0;                       // (half rows, cols) Complex
    Index other_points = 0;                   // as points
    Index row_scale = 0;                      // (half rows) float
    Index left_factor = 0, right_factor = 0;  // (rank, half rows or cols) Complex
    SubspaceLayout subspace;
    Index bytes = 0;
  };
  Layout layout(bool fed_back) const;
  // Of single stages, which have nothing to remember; of decoding a matrix, which takes less.
  Layout stage_layout() const;
  Layout decoding_layout() const;

 private:
  void add_constellation(ConstantsBuilder& constants);
  void add_trellis(ConstantsBuilder& constants);
  Index transform_bytes(bool fed_back) const;
  void place_weight(Layout& layout, Arena& arena, bool fed_back) const;
  Index place_factoring(Layout& layout, Arena arena) const;
  void place_coding(Layout& layout, Arena& arena, bool fed_back) const;
  void place_factors(Layout& layout, Arena& arena) const;
  SubspaceLayout subspace_layout(Arena& arena) const;

  Index rows_, cols_;
  Codec codec_;
  int code_bits_;
  Index rank_, oversampling_;
  int state_bits_ = 0;  // effective ones
  int ring_count_ = 0;
  Index shared_limit_;
  ConstantsBuilder builder_;  // before the tables, which fill it
  RealFftTables columns_;
  FftTables rows_transform_;
  RealFftTables moment_columns_;
  Places places_;
  std::vector<std::byte> constants_;
};

}  // namespace llava_fa::cuda

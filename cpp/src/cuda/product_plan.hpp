// What a product with one matrix needs on a device: its constants, and where it keeps intermediate
// results. Host code; the kernels run in product_pipeline.hpp.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "fft_plan.hpp"
#include "llava_fa/cuda.hpp"
#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/spectrum.hpp"
#include "trellis.hpp"

namespace llava_fa::cuda {

inline constexpr Index kMostVectors = 4;         // activations that are multiplied with the codes
inline constexpr Index kMostAtOnce = 2048;       // activations that share the workspace
inline constexpr Index kPanelRowsAtOnce = 1024;  // complex rows decoded at a time

// Places of intermediate results in the workspace.
struct WorkspaceLayout {
  Index spectrum = 0;    // (tokens, pitch) Complex
  Index parts = 0;       // (part_count, tokens, 2, half rows) float
  Index inner = 0;       // (tokens, rank) Complex
  Index transforms = 0;  // buffers of transforms that are too long for shared memory
  Index halves = 0;      // (planes, tokens, 2 half_pitch) Half, and its units
  Index units = 0;
  Index panel = 0;  // (planes, 2 kPanelRowsAtOnce, 2 half_pitch) Half
  Index bytes = 0;
  Index part_count = 0;  // those of the codes, then one for the low rank
};

class ProductPlan {
 public:
  // shared_limit: bytes of shared memory that a block can have.
  ProductPlan(const PackedMatrix& matrix, Index shared_limit);

  const MatrixSpec& spec() const { return spec_; }
  std::span<const std::byte> constants() const { return constants_; }

  bool is_trellis() const { return spec_.codec == Codec::trellis; }
  Index half_rows() const { return llava_fa::half_rows(spec_.rows); }
  // Entries of a spectrum: whole groups of columns.
  Index pitch() const;
  int state_rows() const { return state_rows_; }

  WorkspaceLayout layout(Index tokens, Precision precision) const;
  // The most that any share of so many activations needs.
  Index workspace_bytes(Index activations, Precision precision) const;

  // Shared memory of a transform; 0 if its buffers are in the workspace.
  Index shared_bytes(const RealFftTables& tables) const;

  // Places of the constants.
  struct Places {
    Index input_multiplier, output_multiplier, row_scale, points, left;
    Index right;  // columns in the order of spectra
  };
  const Places& places() const { return places_; }
  const RealFftTables& input_transform() const { return input_; }
  const RealFftTables& output_transform() const { return output_; }

 private:
  void add_points(ConstantsBuilder& constants);

  MatrixSpec spec_;
  Index shared_limit_;
  int state_rows_ = 0;        // of the trellis
  ConstantsBuilder builder_;  // before the tables, which fill it
  RealFftTables input_, output_;
  Places places_ = {};
  std::vector<std::byte> constants_;
};

inline int planes_of(Precision precision) { return precision == Precision::single ? 2 : 1; }

}  // namespace llava_fa::cuda

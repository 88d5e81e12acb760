// Constants and workspace of a compression.
#include "compression_plan.hpp"

#include <algorithm>

#include "../low_rank_internal.hpp"

namespace llava_fa::cuda {
namespace {

std::vector<Complex> points_of(const std::vector<float>& pairs) {
  std::vector<Complex> out;
  for (std::size_t i = 0; i < pairs.size(); i += 2) out.push_back({pairs[i], pairs[i + 1]});
  return out;
}

std::vector<Complex> in_search_order(const std::vector<Complex>& points, const SearchOrder& order) {
  std::vector<Complex> out(points.size());
  for (int s = 0; s < order.states(); ++s) {
    out[order.place(order.team_bits(), s / order.groups(), s % order.groups())] = points[s];
  }
  return out;
}

}  // namespace

CompressionPlan::CompressionPlan(Index rows, Index cols, const CompressionOptions& options,
                                 Index shared_limit, Index oversampling)
    : rows_(rows),
      cols_(cols),
      codec_(options.joint.codec),
      code_bits_(options.joint.code_bits),
      rank_(options.joint.rank),
      oversampling_(oversampling),
      shared_limit_(shared_limit),
      columns_(rows, builder_),
      rows_transform_(cols, builder_),
      moment_columns_(cols, builder_) {
  if (codec_ == Codec::trellis) {
    state_bits_ = effective_state_bits(half_rows(), code_bits_, options.joint.state_bits);
    add_trellis(builder_);
  } else {
    add_constellation(builder_);
  }
  constants_ = builder_.take();
}

void CompressionPlan::add_constellation(ConstantsBuilder& constants) {
  const Constellation& points = constellation(codec_, code_bits_);
  places_.table = constants.add(points_of(points.point_pairs));
  places_.rings = constants.add(points.rings);
  places_.point_code = constants.add(points.point_code);
  ring_count_ = static_cast<int>(points.rings.size());
}

void CompressionPlan::add_trellis(ConstantsBuilder& constants) {
  const Trellis& code = trellis(code_bits_, state_bits_);
  const std::vector<Complex> points = points_of(code.point_pairs);
  places_.table = constants.add(points);
  places_.search_table = constants.add(in_search_order(points, search_order()));
  std::vector<std::uint8_t> stored(std::size_t{1} << code_bits_), codes(stored.size());
  for (std::uint32_t c = 0; c < 1u << code_bits_; ++c) {
    stored[c] = code.stored_code(c);
    codes[stored[c]] = static_cast<std::uint8_t>(c);
  }
  places_.stored_code = constants.add(stored);
  places_.code_of_stored = constants.add(codes);
}

bool CompressionPlan::searches_in_shared(bool fed_back) const {
  const Index search = PathSearch<true>::shared_bytes(search_order());
  const Index bytes = fed_back ? EncodeBlock<PathChooser<true>>::shared_bytes(search) : search;
  return bytes <= shared_limit_;
}

Index CompressionPlan::search_blocks(bool fed_back) const {
  const Index segments = segment_count(half_rows());
  if (fed_back) return segments;
  const Index bytes = PathSearch<true>::most_steps(half_rows()) * search_order().groups();
  return std::min({cols_ * segments, kMostSearches, std::max(Index{1}, kMostSearchBytes / bytes)});
}

SubspaceLayout CompressionPlan::subspace_layout(Arena& arena) const {
  SubspaceLayout layout;
  layout.columns = subspace_columns(rank_, oversampling_, half_rows(), cols_);
  const Index squares = layout.columns * layout.columns;
  layout.basis = arena.take(half_rows() * layout.columns * 8);
  layout.co_basis = arena.take(cols_ * layout.columns * 8);
  layout.spare = arena.take(std::max(half_rows(), cols_) * layout.columns * 8);
  layout.gram = arena.take(squares * 16);
  layout.first_triangle = arena.take(squares * 16);
  layout.second_triangle = arena.take(squares * 16);
  layout.small = arena.take(squares * 8);
  return layout;
}

// Buffers of the transforms that are too long for shared memory.
Index CompressionPlan::transform_bytes(bool fed_back) const {
  Index bytes = 0;
  const auto add = [&](Index elements, Index sequences) {
    if (shared_bytes_of_transform(elements, shared_limit_) > 0) return;
    bytes = std::max(bytes, std::min(sequences, kTransformBlocks) * 2 * elements * 8);
  };
  add(columns_.buffer_elements(), cols_);
  add(rows_transform_.buffer_elements(), half_rows());
  if (fed_back) {
    add(moment_columns_.buffer_elements(), cols_);
    add(rows_transform_.buffer_elements(), llava_fa::half_rows(cols_));
  }
  return bytes;
}

// Returns where the arrays of the factorization end.
Index CompressionPlan::place_factoring(Layout& layout, Arena arena) const {
  layout.moment_spectrum = arena.take(llava_fa::half_rows(cols_) * cols_ * 8);
  layout.factor = arena.take(cols_ * cols_ * 8);
  layout.factor_inverse = arena.take(kFilterBlock * kFilterBlock * 8);
  layout.factor_failed = arena.take(4);
  return arena.bytes();
}

void CompressionPlan::place_weight(Layout& layout, Arena& arena, bool fed_back) const {
  layout.constants = arena.take(static_cast<Index>(constants_.size()));
  layout.row_multiplier = arena.take(rows_ * 4);
  layout.col_multiplier = arena.take(cols_ * 4);
  layout.row_energies = arena.take(rows_ * 8);
  layout.col_energies = arena.take(cols_ * 8);
  layout.transforms = arena.take(transform_bytes(fed_back));
}

void CompressionPlan::place_coding(Layout& layout, Arena& arena, bool fed_back) const {
  const Index half = half_rows(), entries = half * cols_;
  layout.spectrum = arena.take(entries * 8);
  layout.sizes = arena.take(half * 4);
  layout.points = arena.take(entries * 2);
  layout.sums = arena.take(half * static_cast<Index>(sizeof(RowSum)));
  layout.packed = arena.take(packed_bytes());
  if (codec_ != Codec::trellis) return;
  const Index groups = search_order().groups(), blocks = search_blocks(fed_back);
  layout.ways = arena.take(blocks * PathSearch<true>::most_steps(half) * groups);
  if (!searches_in_shared(fed_back)) layout.costs = arena.take(blocks * 2 * groups * 4);
}

void CompressionPlan::place_factors(Layout& layout, Arena& arena) const {
  layout.left_factor = arena.take(rank_ * half_rows() * 8);
  layout.right_factor = arena.take(rank_ * cols_ * 8);
}

CompressionPlan::Layout CompressionPlan::layout(bool fed_back) const {
  const Index half = half_rows(), entries = half * cols_;
  Layout layout;
  Arena arena;
  place_weight(layout, arena, fed_back);
  layout.column_weight = arena.take(cols_ * 4);
  layout.squared_weight = arena.take(cols_ * 4);
  Index factoring_end = 0;
  if (fed_back) {
    layout.filter = arena.take(4 * FeedbackFilter::floats(cols_));
    layout.diagonal = arena.take(4 * cols_);
    // What follows is not used until the filter is there.
    factoring_end = place_factoring(layout, arena);
    layout.errors = arena.take(entries * 8);
    layout.targets = arena.take(2 * kFilterBlock * half * 8);
    layout.fed_back_sums = arena.take(half * static_cast<Index>(sizeof(FedBackSum)));
  }
  place_coding(layout, arena, fed_back);
  if (rank_ > 0) {
    layout.residual = arena.take(entries * 8);
    layout.other_points = arena.take(entries * 2);
    layout.row_scale = arena.take(half * 4);
    place_factors(layout, arena);
    layout.subspace = subspace_layout(arena);
  }
  layout.bytes = std::max(arena.bytes(), factoring_end);
  return layout;
}

CompressionPlan::Layout CompressionPlan::stage_layout() const {
  Layout layout;
  Arena arena;
  place_weight(layout, arena, /*fed_back=*/false);
  place_coding(layout, arena, /*fed_back=*/false);
  layout.row_scale = arena.take(half_rows() * 4);
  if (rank_ > 0) layout.subspace = subspace_layout(arena);
  layout.bytes = arena.bytes();
  return layout;
}

CompressionPlan::Layout CompressionPlan::decoding_layout() const {
  Layout layout;
  Arena arena;
  place_weight(layout, arena, /*fed_back=*/false);
  layout.spectrum = arena.take(half_rows() * cols_ * 8);
  layout.row_scale = arena.take(half_rows() * 4);
  place_factors(layout, arena);
  layout.bytes = arena.bytes();
  return layout;
}

}  // namespace llava_fa::cuda

// Constants and workspace of a product.
#include "product_plan.hpp"

#include <algorithm>
#include <cmath>

#include "../half_float.hpp"
#include "arena.hpp"
#include "folding.hpp"
#include "point_product.hpp"
#include "points.hpp"

namespace llava_fa::cuda {
namespace {

// Columns in the trellis' order, or as they are.
std::vector<Complex> interleaved(const ComplexMatrix& planes, bool trellis) {
  std::vector<Complex> out(static_cast<std::size_t>(planes.count()));
  for (Index i = 0; i < planes.count(); ++i) {
    const Index n = planes.cols(), l = i % n;
    out[i - l + place_of(trellis, n, l)] = {planes.real()[i], planes.imag()[i]};
  }
  return out;
}

std::vector<float> to_floats(std::span<const std::uint16_t> halves) {
  std::vector<float> out;
  for (const std::uint16_t half : halves) out.push_back(half_to_float(half));
  return out;
}

// The index after stored codes, its nibbles in the order coarse and fine level of the real part,
// then of the imaginary part.
std::uint32_t index_of_codes(const Trellis& code, std::uint32_t stored_codes) {
  const auto [c, f] = code.index_of_codes(stored_codes);
  const std::uint32_t coarse = c, fine = f;
  return (coarse & 15) | (fine & 15) << 4 | (coarse >> 4) << 8 | (fine >> 4) << 12;
}

std::vector<TrellisTable::Word> trellis_words(const Trellis& code) {
  std::vector<TrellisTable::Word> words(TrellisTable::kWords);
  for (std::uint32_t i = 0; i < 256; ++i) {
    words[i].index = index_of_codes(code, i);
    words[256 + i].index = index_of_codes(code, i << 8);
    const int level = (code.coarse[i & 15] << code.fine_shift) + code.fine[i >> 4];
    words[512 + i].level = std::ldexp(static_cast<float>(level), -(kLevelBits + code.fine_shift));
  }
  return words;
}

}  // namespace

ProductPlan::ProductPlan(const PackedMatrix& matrix, Index shared_limit)
    : spec_(matrix.spec()),
      shared_limit_(shared_limit),
      input_(spec_.cols, builder_),
      output_(spec_.rows, builder_) {
  places_.input_multiplier = builder_.add(matrix.input_multiplier());
  places_.output_multiplier = builder_.add(matrix.output_multiplier());
  places_.row_scale = builder_.add(to_floats(matrix.row_scale()));
  add_points(builder_);
  if (spec_.rank > 0) {
    places_.left = builder_.add(interleaved(matrix.low_rank_left(), false));
    places_.right = builder_.add(interleaved(matrix.low_rank_right(), is_trellis()));
  }
  constants_ = builder_.take();
}

void ProductPlan::add_points(ConstantsBuilder& constants) {
  if (is_trellis()) {
    const int state_bits = effective_state_bits(half_rows(), spec_.code_bits, spec_.state_bits);
    state_rows_ = rows_of_state(spec_.code_bits, state_bits);
    places_.points = constants.add(trellis_words(llava_fa::trellis(spec_.code_bits, state_bits)));
  } else {
    places_.points = constants.add(constellation(spec_.codec, spec_.code_bits).point_pairs);
  }
}

Index ProductPlan::pitch() const { return ceil_div(spec_.cols, kGroupColumns) * kGroupColumns; }

Index ProductPlan::shared_bytes(const RealFftTables& tables) const {
  return shared_bytes_of_transform(tables.buffer_elements(), shared_limit_);
}

WorkspaceLayout ProductPlan::layout(Index tokens, Precision precision) const {
  const bool vectors = tokens <= kMostVectors;
  const Index rows = half_rows(), width = 2 * half_pitch(spec_.cols);
  const int planes = planes_of(precision);
  WorkspaceLayout layout;
  Arena arena;
  layout.part_count = (vectors ? product_parts(spec_.cols) : 1) + (spec_.rank > 0 ? 1 : 0);
  layout.spectrum = arena.take(tokens * pitch() * 8);
  layout.parts = arena.take(layout.part_count * tokens * 2 * rows * 4);
  layout.inner = arena.take(tokens * spec_.rank * 8);
  Index longest = 0;
  for (const RealFftTables* tables : {&input_, &output_}) {
    if (shared_bytes(*tables) == 0) longest = std::max(longest, tables->buffer_elements());
  }
  layout.transforms = arena.take(std::min(tokens, kTransformBlocks) * 2 * longest * 8);
  if (!vectors) {
    layout.halves = arena.take(planes * tokens * width * 2);
    layout.units = arena.take(tokens * 4);
    layout.panel = arena.take(planes * 2 * std::min(kPanelRowsAtOnce, rows) * width * 2);
  }
  layout.bytes = arena.bytes();
  return layout;
}

Index ProductPlan::workspace_bytes(Index activations, Precision precision) const {
  Index most = 0;
  for (const Index share : {std::min(activations, kMostAtOnce), activations % kMostAtOnce}) {
    if (share > 0) most = std::max(most, layout(share, precision).bytes);
  }
  return most;
}

}  // namespace llava_fa::cuda

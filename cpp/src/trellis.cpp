// Trellis code: the points, checks and the public entry points; the Viterbi search and
// the decoder are the backend's.
#include "llava_fa/trellis.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <mutex>

#include "backend.hpp"
#include "checks.hpp"
#include "code_book.hpp"
#include "llava_fa/runtime.hpp"
#include "trellis_tables.hpp"

namespace llava_fa {
namespace {

// table[i][n]: the exclusive or of the columns of nibble i's bits that are set in n, cut to one
// byte from bit `first` on.
std::array<std::array<std::uint8_t, 16>, kMaxStateBits / 4> nibble_table(
    const std::array<std::uint16_t, kMaxStateBits>& column, int first) {
  std::array<std::array<std::uint8_t, 16>, kMaxStateBits / 4> table = {};
  for (int bit = 0; bit < kMaxStateBits; ++bit) {
    for (int n = 0; n < 16; ++n) {
      if (n >> (bit % 4) & 1) {
        table[bit / 4][n] ^= static_cast<std::uint8_t>(column[bit] >> first);
      }
    }
  }
  return table;
}

Trellis built(int code_bits, int state_bits) {
  const TrellisTables& tables = trellis_tables(code_bits);
  Trellis out;
  out.code_bits = code_bits;
  out.state_bits = state_bits;
  out.coarse_index = nibble_table(tables.column, 0);
  out.fine_index = nibble_table(tables.column, 8);
  out.coarse = tables.coarse;
  out.fine = tables.fine;
  out.has_fine = std::ranges::any_of(tables.fine, [](int level) { return level != 0; });
  out.fine_shift = tables.fine_shift;
  for (std::uint32_t code = 0; code < std::uint32_t{1} << code_bits; ++code) {
    out.code_of_stored[out.stored_code(code)] = static_cast<std::uint8_t>(code);
  }
  const auto level = [&](int i, int j) {
    return std::ldexp(static_cast<float>((tables.coarse[i] << tables.fine_shift) + tables.fine[j]),
                      -(kLevelBits + tables.fine_shift));
  };
  for (std::uint32_t state = 0; state < std::uint32_t{1} << state_bits; ++state) {
    const auto [c, f] = out.index_of(state);
    const float real = level(c & 15, f & 15), imag = level(c >> 4, f >> 4);
    out.point_real.push_back(real);
    out.point_imag.push_back(imag);
    out.point_pairs.insert(out.point_pairs.end(), {real, imag});
    out.point_energy.push_back(real * real + imag * imag);
  }
  return out;
}

}  // namespace

const Trellis& trellis(int code_bits, int state_bits) {
  require_argument(code_bits >= kMinCodeBits && code_bits <= kMaxTrellisCodeBits, "code_bits is ",
                   code_bits, ", expected 1 to ", kMaxTrellisCodeBits, " for the trellis");
  require_argument(state_bits >= code_bits && state_bits <= kMaxStateBits, "state_bits is ",
                   state_bits, ", expected ", code_bits, " to ", kMaxStateBits);
  static std::mutex mutex;
  static std::array<std::array<std::unique_ptr<Trellis>, kMaxStateBits + 1>,
                    kMaxTrellisCodeBits + 1>
      cache;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Trellis>& entry = cache[code_bits][state_bits];
  if (!entry) entry = std::make_unique<Trellis>(built(code_bits, state_bits));
  return *entry;
}

PolarCodes trellis_encode(ComplexMatrix& values, int code_bits, int state_bits, bool write_back,
                          std::span<const float> column_weight) {
  const CodeBook book{Codec::trellis, code_bits, state_bits};
  return encode_entries(values, book, {column_weight, nullptr}, write_back).codes;
}

double trellis_distortion(int code_bits, int state_bits) {
  trellis(code_bits, state_bits);  // checks the arguments
  static std::mutex mutex;
  static std::array<std::array<double, kMaxStateBits + 1>, kMaxTrellisCodeBits + 1> cache = {};
  const std::lock_guard lock(mutex);
  double& entry = cache[code_bits][state_bits];
  if (entry == 0) {
    ComplexMatrix sample(kSegmentRows, 64);
    cpu_backend().fill_gaussian(/*seed=*/1, /*first_column=*/0, num_threads(), sample);
    const CodeBook book{Codec::trellis, code_bits, state_bits};
    const EncodedEntries encoded = encode_entries(sample, book, {}, /*write_back=*/false);
    entry = encoded.error / encoded.energy;
  }
  return entry;
}

void trellis_decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                         Index cols, int code_bits, int state_bits, Index first_row,
                         Index row_count, float* real, float* imag) {
  const Trellis& code = trellis(code_bits, effective_state_bits(rows, code_bits, state_bits));
  cpu_backend().decode_trellis_rows(packed, row_scale, rows, cols, code, first_row, row_count,
                                    num_threads(), real, imag);
}

ComplexMatrix trellis_decode(const PolarCodes& codes, int state_bits) {
  ComplexMatrix values(codes.rows, codes.cols);
  trellis_decode_rows(codes.packed.data(), codes.row_scale.data(), codes.rows, codes.cols,
                      codes.code_bits, state_bits, 0, codes.rows, values.real(), values.imag());
  return values;
}

}  // namespace llava_fa

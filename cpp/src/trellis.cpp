// Trellis code: design of the points, checks and the public entry points; the Viterbi search and
// the decoder are the backend's.
#include "llava_fa/trellis.hpp"

#include <array>
#include <cmath>
#include <memory>
#include <mutex>
#include <numbers>

#include "backend.hpp"
#include "checks.hpp"
#include "code_book.hpp"
#include "llava_fa/runtime.hpp"

namespace llava_fa {
namespace {

constexpr std::uint32_t kGolden = 2654435761u;  // 2^32 / golden ratio

// Odd multipliers by state bits: from 8 on the best of about a hundred drawn at random, by the
// distortion of 2 to 8 code bits on a Gaussian; 0.2 to 2.5 % better than the golden ratio's.
constexpr std::array<std::uint32_t, kMaxStateBits + 1> kMultipliers = {
    kGolden, kGolden, kGolden, kGolden, kGolden, kGolden, kGolden, kGolden, 95,
    5023,    3905,    20639,   43489,   11135,   15375,   205665,  kGolden};

// A bijection of the states that leaves no structure between neighbours in the trellis: multiply,
// fold the upper half onto the lower, multiply.
std::uint32_t hashed(std::uint32_t state, int state_bits) {
  const std::uint32_t odd = kMultipliers[state_bits];
  const std::uint32_t mask = (std::uint32_t{1} << state_bits) - 1;
  std::uint32_t h = (state * odd) & mask;
  h ^= h >> std::max(1, state_bits / 2);
  return (h * odd) & mask;
}

// Root mean squares of a Rayleigh magnitude within equally probable intervals, scaled to a total
// power of 1 - 2^-B: what an ideal code of B bits reproduces of a unit-power source.
std::vector<double> quantile_magnitudes(int count, int code_bits) {
  std::vector<double> magnitudes(count);
  const double power = 1.0 - std::exp2(-code_bits);
  // With t = rho^2 exponential, the mean of t over tail probabilities [a, b] is the difference of
  // x - x log x divided by b - a.
  const auto integral = [](double x) { return x > 0 ? x - x * std::log(x) : 0.0; };
  for (int i = 0; i < count; ++i) {
    const double b = 1.0 - static_cast<double>(i) / count;
    const double a = 1.0 - static_cast<double>(i + 1) / count;
    magnitudes[i] = std::sqrt(power * (integral(b) - integral(a)) * count);
  }
  return magnitudes;
}

Trellis design(int code_bits, int state_bits) {
  Trellis out;
  out.code_bits = code_bits;
  out.state_bits = state_bits;
  const int magnitude_bits = state_bits / 2, phase_bits = state_bits - magnitude_bits;
  const std::vector<double> magnitudes = quantile_magnitudes(1 << magnitude_bits, code_bits);
  const std::uint32_t states = std::uint32_t{1} << state_bits, phases = 1u << phase_bits;
  for (std::uint32_t s = 0; s < states; ++s) {
    const std::uint32_t h = hashed(s, state_bits);
    const std::uint32_t ring = h >> phase_bits;
    // odd rings are turned by half a phase, as in the ring constellations
    const double phase = (h % phases) + 0.5 * (ring % 2);
    const double angle = 2.0 * std::numbers::pi * phase / phases;
    out.point_real.push_back(static_cast<float>(magnitudes[ring] * std::cos(angle)));
    out.point_imag.push_back(static_cast<float>(magnitudes[ring] * std::sin(angle)));
    out.point_pairs.insert(out.point_pairs.end(), {out.point_real.back(), out.point_imag.back()});
    out.point_energy.push_back(static_cast<float>(magnitudes[ring] * magnitudes[ring]));
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
  if (!entry) entry = std::make_unique<Trellis>(design(code_bits, state_bits));
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
    cpu_backend().fill_gaussian(/*seed=*/1, num_threads(), sample);
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

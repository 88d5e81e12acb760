// Tables of DFTs, computed in double precision.
#include "fft_plan.hpp"

#include <cmath>
#include <complex>
#include <numbers>

namespace llava_fa::cuda {
namespace {

// A dense pass costs as many products per element as its prime; two transforms of at least twice
// the length cost about so many.
constexpr int kLargestDenseRadix = 61;

using Value = std::complex<double>;

Value root(Index numerator, Index denominator) {
  const double angle = -2.0 * std::numbers::pi * static_cast<double>(numerator % denominator) /
                       static_cast<double>(denominator);
  return {std::cos(angle), std::sin(angle)};
}

Complex rounded(Value value) {
  return {static_cast<float>(value.real()), static_cast<float>(value.imag())};
}

std::vector<Complex> rounded(const std::vector<Value>& values) {
  std::vector<Complex> out;
  for (const Value value : values) out.push_back(rounded(value));
  return out;
}

std::vector<Complex> roots(Index count, Index denominator) {
  std::vector<Complex> out;
  for (Index t = 0; t < count; ++t) out.push_back(rounded(root(t, denominator)));
  return out;
}

// Radices in the order of the passes.
std::vector<int> factors(int length) {
  std::vector<int> out;
  for (const int radix : {8, 4, 2, 3, 5}) {
    for (; length % radix == 0; length /= radix) out.push_back(radix);
  }
  for (int prime = 7; length > 1; prime += 2) {
    if (prime > length / prime) prime = length;
    for (; length % prime == 0; length /= prime) out.push_back(prime);
  }
  return out;
}

// Shortest length of at least `least` that is 2^a, 3 · 2^a or 5 · 2^a.
int convolution_length(int least) {
  int shortest = 0;
  for (const int factor : {1, 3, 5}) {
    int length = factor;
    while (length < least) length *= 2;
    if (shortest == 0 || length < shortest) shortest = length;
  }
  return shortest;
}

std::vector<Value> transformed(const std::vector<Value>& values) {
  const Index length = static_cast<Index>(values.size());
  if (length == 1) return values;
  const Index radix = length % 2 == 0 ? 2 : length % 3 == 0 ? 3 : 5;
  const Index count = length / radix;
  std::vector<Value> out(values.size());
  for (Index r = 0; r < radix; ++r) {
    std::vector<Value> part;
    for (Index i = r; i < length; i += radix) part.push_back(values[i]);
    part = transformed(part);
    for (Index k = 0; k < length; ++k) out[k] += root(r * k, length) * part[k % count];
  }
  return out;
}

}  // namespace

FftTables::FftTables(Index sequence, ConstantsBuilder& constants) {
  plan_.sequence = plan_.length = static_cast<int>(sequence);
  std::vector<int> radices = factors(plan_.sequence);
  convolves_ = !radices.empty() && radices.back() > kLargestDenseRadix;
  if (convolves_) {
    plan_.length = convolution_length(2 * plan_.sequence - 1);
    radices = factors(plan_.length);
    add_chirp(constants);
  }
  plan_.pass_count = static_cast<int>(radices.size());
  std::copy(radices.begin(), radices.end(), plan_.radix);
  roots_ = constants.add(roots(plan_.length, plan_.length));
}

void FftTables::add_chirp(ConstantsBuilder& constants) {
  const Index sequence = plan_.sequence, length = plan_.length;
  std::vector<Value> chirp, inverse(length);
  for (Index j = 0; j < sequence; ++j) {
    chirp.push_back(root(j * j % (2 * sequence), 2 * sequence));
    inverse[j] = inverse[(length - j) % length] =
        std::conj(chirp.back()) / static_cast<double>(length);
  }
  chirp_ = constants.add(rounded(chirp));
  chirp_spectrum_ = constants.add(rounded(transformed(inverse)));
}

FftPlan FftTables::at(const std::byte* constants) const {
  FftPlan plan = plan_;
  plan.roots = constants_at<Complex>(constants, roots_);
  if (convolves_) {
    plan.chirp = constants_at<Complex>(constants, chirp_);
    plan.chirp_spectrum = constants_at<Complex>(constants, chirp_spectrum_);
  }
  return plan;
}

RealFftTables::RealFftTables(Index n, ConstantsBuilder& constants)
    : n_(n),
      turns_(n % 2 == 0 ? constants.add(roots(n / 2 + 1, n)) : 0),
      complex_(n % 2 == 0 ? n / 2 : n, constants) {}

RealFftPlan RealFftTables::at(const std::byte* constants) const {
  return {complex_.at(constants), n_, static_cast<float>(1.0 / std::sqrt(static_cast<double>(n_))),
          constants_at<Complex>(constants, turns_)};
}

}  // namespace llava_fa::cuda

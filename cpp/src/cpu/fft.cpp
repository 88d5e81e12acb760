// Complex DFTs of any length over lanes; the algorithm is numbered in fft.hpp.
#include "fft.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace llava_fa::cpu {
namespace {

// A dense DFT of prime length p costs 2 p multiply-adds per entry; the chirp transform needs two
// smooth transforms of more than twice the length. They break even near p = 150.
constexpr int kLargestDirectPrime = 150;

// Radices in pass order; empty if a prime factor is too large for a dense DFT.
std::vector<int> factorize(Index length) {
  std::vector<int> radices;
  for (int radix : {8, 5, 4, 3, 2}) {
    while (length % radix == 0) {
      radices.push_back(radix);
      length /= radix;
    }
  }
  for (int prime = 7; length > 1; prime += 2) {
    if (prime > kLargestDirectPrime) return {};
    while (length % prime == 0) {
      radices.push_back(prime);
      length /= prime;
    }
  }
  return radices;
}

Index next_smooth_length(Index at_least) {
  for (Index candidate = at_least;; ++candidate) {
    Index rest = candidate;
    for (int prime : {2, 3, 5}) {
      while (rest % prime == 0) rest /= prime;
    }
    if (rest == 1) return candidate;
  }
}

// In-place DFT of `Radix` lane vectors.
template <int Radix>
inline void butterfly(ComplexLane (&a)[Radix]);

template <>
inline void butterfly<2>(ComplexLane (&a)[2]) {
  const ComplexLane sum = a[0] + a[1];
  a[1] = a[0] - a[1];
  a[0] = sum;
}

template <>
inline void butterfly<3>(ComplexLane (&a)[3]) {
  constexpr float kSin = 0.86602540378443864676f;
  const ComplexLane sum = a[1] + a[2];
  const ComplexLane centre = {a[0].re - 0.5f * sum.re, a[0].im - 0.5f * sum.im};
  const ComplexLane diff = a[1] - a[2];
  const ComplexLane turn = {kSin * diff.im, -kSin * diff.re};
  a[0] = a[0] + sum;
  a[1] = centre + turn;
  a[2] = centre - turn;
}

template <>
inline void butterfly<4>(ComplexLane (&a)[4]) {
  const ComplexLane even_sum = a[0] + a[2];
  const ComplexLane even_diff = a[0] - a[2];
  const ComplexLane odd_sum = a[1] + a[3];
  const ComplexLane odd_turn = times_minus_i(a[1] - a[3]);
  a[0] = even_sum + odd_sum;
  a[1] = even_diff + odd_turn;
  a[2] = even_sum - odd_sum;
  a[3] = even_diff - odd_turn;
}

template <>
inline void butterfly<5>(ComplexLane (&a)[5]) {
  constexpr float kCos1 = 0.30901699437494742410f, kSin1 = 0.95105651629515357212f;
  constexpr float kCos2 = -0.80901699437494742410f, kSin2 = 0.58778525229247312917f;
  const ComplexLane sum1 = a[1] + a[4], diff1 = a[1] - a[4];
  const ComplexLane sum2 = a[2] + a[3], diff2 = a[2] - a[3];
  const ComplexLane centre1 = {a[0].re + kCos1 * sum1.re + kCos2 * sum2.re,
                               a[0].im + kCos1 * sum1.im + kCos2 * sum2.im};
  const ComplexLane centre2 = {a[0].re + kCos2 * sum1.re + kCos1 * sum2.re,
                               a[0].im + kCos2 * sum1.im + kCos1 * sum2.im};
  const ComplexLane turn1 =
      times_minus_i({kSin1 * diff1.re + kSin2 * diff2.re, kSin1 * diff1.im + kSin2 * diff2.im});
  const ComplexLane turn2 =
      times_minus_i({kSin2 * diff1.re - kSin1 * diff2.re, kSin2 * diff1.im - kSin1 * diff2.im});
  a[0] = a[0] + sum1 + sum2;
  a[1] = centre1 + turn1;
  a[4] = centre1 - turn1;
  a[2] = centre2 + turn2;
  a[3] = centre2 - turn2;
}

template <>
inline void butterfly<8>(ComplexLane (&a)[8]) {
  constexpr float kHalfSqrt = 0.70710678118654752440f;
  ComplexLane even[4] = {a[0], a[2], a[4], a[6]};
  ComplexLane odd[4] = {a[1], a[3], a[5], a[7]};
  butterfly<4>(even);
  butterfly<4>(odd);
  const ComplexLane turn1 = {kHalfSqrt * (odd[1].re + odd[1].im),
                             kHalfSqrt * (odd[1].im - odd[1].re)};
  const ComplexLane turn2 = times_minus_i(odd[2]);
  const ComplexLane turn3 = {kHalfSqrt * (odd[3].im - odd[3].re),
                             -kHalfSqrt * (odd[3].re + odd[3].im)};
  a[0] = even[0] + odd[0];
  a[4] = even[0] - odd[0];
  a[1] = even[1] + turn1;
  a[5] = even[1] - turn1;
  a[2] = even[2] + turn2;
  a[6] = even[2] - turn2;
  a[3] = even[3] + turn3;
  a[7] = even[3] - turn3;
}

// One Stockham pass: y[q + s (R k + j)] = w^(k j) DFT_R(x[q + s (k + j groups)])_j.
template <int Radix>
void stockham_pass(Index groups, Index stride, const float* twiddles, LaneSpan x, LaneSpan y) {
  for (Index k = 0; k < groups; ++k) {
    const float* w = twiddles + k * 2 * (Radix - 1);
    for (Index q = 0; q < stride; ++q) {
      ComplexLane a[Radix];
      for (int j = 0; j < Radix; ++j) {
        const Index at = q + stride * (k + j * groups);
        a[j] = {x.re[at], x.im[at]};
      }
      butterfly<Radix>(a);
      for (int j = 0; j < Radix; ++j) {
        const Index at = q + stride * (Radix * k + j);
        const ComplexLane b = j == 0 ? a[0] : times(a[j], w[2 * j - 2], w[2 * j - 1]);
        y.re[at] = b.re;
        y.im[at] = b.im;
      }
    }
  }
}

// Dense DFT pass of an odd prime radix: sums and differences of mirrored entries halve the work.
void prime_pass(int radix, Index groups, Index stride, const float* twiddles, const float* roots,
                LaneSpan x, LaneSpan y) {
  const int half = radix / 2;
  std::vector<ComplexLane> sum(half + 1), diff(half + 1);
  for (Index k = 0; k < groups; ++k) {
    const float* w = twiddles + k * 2 * (radix - 1);
    for (Index q = 0; q < stride; ++q) {
      auto load = [&](int j) -> ComplexLane {
        const Index at = q + stride * (k + j * groups);
        return {x.re[at], x.im[at]};
      };
      auto store = [&](int j, ComplexLane a) {
        const Index at = q + stride * (radix * k + j);
        const ComplexLane b = j == 0 ? a : times(a, w[2 * j - 2], w[2 * j - 1]);
        y.re[at] = b.re;
        y.im[at] = b.im;
      };
      const ComplexLane first = load(0);
      ComplexLane total = first;
      for (int j = 1; j <= half; ++j) {
        const ComplexLane a = load(j), b = load(radix - j);
        sum[j] = a + b;
        diff[j] = a - b;
        total = total + sum[j];
      }
      store(0, total);
      // Two at a time, the last one twice if need be: sums of one alone wait for each other.
      for (int t = 1; t <= half; t += 2) {
        const int output[2] = {t, std::min(t + 1, half)};
        int at[2] = {output[0], output[1]};
        ComplexLane centre[2] = {first, first}, turn[2] = {};
        for (int j = 1; j <= half; ++j) {
          for (int i = 0; i < 2; ++i) {
            const float c = roots[2 * at[i]], s = roots[2 * at[i] + 1];
            centre[i] = {centre[i].re + c * sum[j].re, centre[i].im + c * sum[j].im};
            turn[i] = {turn[i].re + s * diff[j].re, turn[i].im + s * diff[j].im};
            at[i] = at[i] + output[i] >= radix ? at[i] + output[i] - radix : at[i] + output[i];
          }
        }
        for (int i = 0; i < 2; ++i) {
          // -i * turn with roots holding +sin
          const ComplexLane minus_i_turn = times_minus_i(turn[i]);
          store(output[i], centre[i] + minus_i_turn);
          store(radix - output[i], centre[i] - minus_i_turn);
        }
      }
    }
  }
}

}  // namespace

UnitRoot unit_root(Index numerator, Index denominator) {
  const double angle = -2.0 * std::numbers::pi * static_cast<double>(numerator % denominator) /
                       static_cast<double>(denominator);
  return {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
}

FftPlan::FftPlan(Index length) : length_(length) {
  const std::vector<int> radices = factorize(length);
  if (radices.empty() && length > 1) {
    plan_chirp();
  } else {
    plan_passes(radices);
  }
}

FftPlan::~FftPlan() = default;

void FftPlan::plan_passes(const std::vector<int>& radices) {
  Index remaining = length_, stride = 1;
  for (int radix : radices) {
    Pass pass{radix, remaining / radix, stride, {}, {}};
    for (Index k = 0; k < pass.groups; ++k) {
      for (Index j = 1; j < radix; ++j) {
        const UnitRoot w = unit_root(k * j, remaining);
        pass.twiddles.push_back(w.re);
        pass.twiddles.push_back(w.im);
      }
    }
    if (radix > 5 && radix != 8) {
      for (int t = 0; t < radix; ++t) {
        const UnitRoot w = unit_root(t, radix);
        pass.roots.push_back(w.re);
        pass.roots.push_back(-w.im);
      }
    }
    remaining /= radix;
    stride *= radix;
    passes_.push_back(std::move(pass));
  }
}

void FftPlan::plan_chirp() {
  chirp_ = std::make_unique<Chirp>();
  const Index padded = next_smooth_length(2 * length_ - 1);
  chirp_->convolution = std::make_unique<FftPlan>(padded);
  FloatBuffer storage(padded * 2 * kLanes);
  FloatBuffer scratch(chirp_->convolution->scratch_lanes() * kLanes);
  Lane* re = reinterpret_cast<Lane*>(storage.data());
  LaneSpan filter{re, re + padded};
  for (Index k = 0; k < padded; ++k) filter.re[k] = filter.im[k] = Lane{};
  Index square = 0;  // k^2 modulo 2 length, kept exact
  for (Index k = 0; k < length_; ++k) {
    const UnitRoot w = unit_root(square, 2 * length_);
    chirp_->chirp.push_back(w.re);
    chirp_->chirp.push_back(w.im);
    const Index mirror = k == 0 ? 0 : padded - k;
    filter.re[k] = filter.re[mirror] = broadcast(w.re);
    filter.im[k] = filter.im[mirror] = broadcast(-w.im);
    square = (square + 2 * k + 1) % (2 * length_);
  }
  const LaneSpan spectrum =
      chirp_->convolution->forward(filter, reinterpret_cast<Lane*>(scratch.data()));
  for (Index k = 0; k < padded; ++k) {
    chirp_->filter.push_back(spectrum.re[k][0] / static_cast<float>(padded));
    chirp_->filter.push_back(spectrum.im[k][0] / static_cast<float>(padded));
  }
}

Index FftPlan::scratch_lanes() const {
  if (!chirp_) return 2 * length_;
  return 2 * chirp_->convolution->length() + chirp_->convolution->scratch_lanes();
}

LaneSpan FftPlan::forward(LaneSpan data, Lane* scratch) const {
  return chirp_ ? run_chirp(data, scratch) : run_passes(data, scratch);
}

LaneSpan FftPlan::run_passes(LaneSpan data, Lane* scratch) const {
  LaneSpan x = data, y{scratch, scratch + length_};
  for (const Pass& pass : passes_) {
    const float* w = pass.twiddles.data();
    switch (pass.radix) {
      case 2: stockham_pass<2>(pass.groups, pass.stride, w, x, y); break;
      case 3: stockham_pass<3>(pass.groups, pass.stride, w, x, y); break;
      case 4: stockham_pass<4>(pass.groups, pass.stride, w, x, y); break;
      case 5: stockham_pass<5>(pass.groups, pass.stride, w, x, y); break;
      case 8: stockham_pass<8>(pass.groups, pass.stride, w, x, y); break;
      default: prime_pass(pass.radix, pass.groups, pass.stride, w, pass.roots.data(), x, y);
    }
    std::swap(x, y);
  }
  return x;
}

// X[k] = b_k sum_j (x_j b_j) conj(b)_(k - j) with b_k = exp(-i pi k^2 / length).
LaneSpan FftPlan::run_chirp(LaneSpan data, Lane* scratch) const {
  const FftPlan& convolution = *chirp_->convolution;
  const Index padded = convolution.length();
  LaneSpan work{scratch, scratch + padded};
  Lane* inner_scratch = scratch + 2 * padded;
  const float* b = chirp_->chirp.data();
  for (Index k = 0; k < length_; ++k) {
    const ComplexLane a = times({data.re[k], data.im[k]}, b[2 * k], b[2 * k + 1]);
    work.re[k] = a.re;
    work.im[k] = a.im;
  }
  for (Index k = length_; k < padded; ++k) work.re[k] = work.im[k] = Lane{};
  LaneSpan spectrum = convolution.forward(work, inner_scratch);
  const float* filter = chirp_->filter.data();
  for (Index k = 0; k < padded; ++k) {
    const ComplexLane a = times({spectrum.re[k], spectrum.im[k]}, filter[2 * k], filter[2 * k + 1]);
    spectrum.re[k] = a.re;
    spectrum.im[k] = a.im;
  }
  // Inverse: planes swapped. The ping-pong partner is whichever half does not hold the spectrum.
  Lane* partner = spectrum.re == work.re ? inner_scratch : scratch;
  const LaneSpan swapped = convolution.forward({spectrum.im, spectrum.re}, partner);
  for (Index k = 0; k < length_; ++k) {
    const ComplexLane a = times({swapped.im[k], swapped.re[k]}, b[2 * k], b[2 * k + 1]);
    data.re[k] = a.re;
    data.im[k] = a.im;
  }
  return data;
}

}  // namespace llava_fa::cpu

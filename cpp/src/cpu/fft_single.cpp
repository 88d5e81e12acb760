// One real sequence spread over the lanes, numbered as in fft_single.hpp.
#include "fft_single.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace llava_fa::cpu {
namespace {

Lane* as_lanes(float* values) { return reinterpret_cast<Lane*>(values); }

// out[k] = factor (z[k] + conj z[half - k] + w[k] (z[k] - conj z[half - k])) for 0 < k < half: step
// 5 with w = -i turn, and its reverse with w = i conj(turn). `sign` is 1 there, -1 back.
void add_turned_mirror(const float* __restrict re, const float* __restrict im,
                       const float* __restrict turn_real, const float* __restrict turn_imag,
                       float sign, float factor, Index half, float* __restrict out_real,
                       float* __restrict out_imag) {
  for (Index k = 1; k < half; ++k) {
    const float sum_re = re[k] + re[half - k], sum_im = im[k] + im[half - k];
    const float difference_re = re[k] - re[half - k], difference_im = im[k] - im[half - k];
    const float c = sign * turn_real[k], s = turn_imag[k];
    out_real[k] = factor * (sum_re + c * sum_im + s * difference_re);
    out_imag[k] = factor * (difference_im + s * sum_im - c * difference_re);
  }
}

}  // namespace

// The numbers of step 1, scratch, and the result of step 4.
class SingleFftPlan::Workspace {
 public:
  explicit Workspace(const SingleFftPlan& plan)
      : half_(plan.half_), storage_(4 * plan.half_ + plan.within_.scratch_lanes() * kLanes) {}

  Planes numbers() { return {storage_.data(), storage_.data() + half_}; }
  Planes result() { return {storage_.data() + 2 * half_, storage_.data() + 3 * half_}; }
  Lane* scratch() { return as_lanes(storage_.data() + 4 * half_); }

 private:
  Index half_;
  FloatBuffer storage_;
};

SingleFftPlan::SingleFftPlan(Index length)
    : half_(length / 2),
      within_(FftPlan::cached(half_ / kLanes)),
      across_(FftPlan::cached(kLanes)),
      turn_real_(half_),
      turn_imag_(half_),
      odd_real_(half_),
      odd_imag_(half_) {
  for (Index k = 0; k < half_ / kLanes; ++k) {
    for (Index s = 0; s < kLanes; ++s) {
      const UnitRoot turn = unit_root(s * k, half_);
      turn_real_.data()[k * kLanes + s] = turn.re;
      turn_imag_.data()[k * kLanes + s] = turn.im;
    }
  }
  for (Index k = 0; k < half_; ++k) {
    const UnitRoot turn = unit_root(k, length);
    odd_real_.data()[k] = turn.re;
    odd_imag_.data()[k] = turn.im;
  }
}

SingleFftPlan::Planes SingleFftPlan::transform(Workspace& work) const {
  const Index count = half_ / kLanes;
  const auto [real, imag] = work.numbers();
  const LaneSpan numbers = within_.forward({as_lanes(real), as_lanes(imag)}, work.scratch());
  // The last block may do again what the one before did.
  for (Index k = 0; k < count; k += kLanes) {
    transform_across(numbers, std::min(k, count - kLanes), work.result());
  }
  return work.result();
}

void SingleFftPlan::transform_across(LaneSpan numbers, Index k, Planes out) const {
  alignas(sizeof(Lane)) float real[kLanes][kLanes], imag[kLanes][kLanes];  // (k, lane)
  for (Index i = 0; i < kLanes; ++i) {
    const Lane c = load_lane(turn_real_.data() + (k + i) * kLanes);
    const Lane s = load_lane(turn_imag_.data() + (k + i) * kLanes);
    const Lane re = numbers.re[k + i], im = numbers.im[k + i];
    store_lane(real[i], re * c - im * s);
    store_lane(imag[i], re * s + im * c);
  }
  Lane column[2][kLanes], scratch[2 * kLanes];
  for (Index s = 0; s < kLanes; ++s) {
    for (Index i = 0; i < kLanes; ++i) {
      column[0][s][i] = real[i][s];
      column[1][s][i] = imag[i][s];
    }
  }
  const LaneSpan result = across_.forward({column[0], column[1]}, scratch);
  const Index count = half_ / kLanes;
  for (Index q = 0; q < kLanes; ++q) {
    store_lane(out.real + q * count + k, result.re[q]);
    store_lane(out.imag + q * count + k, result.im[q]);
  }
}

void SingleFftPlan::forward(const float* values, float* real, float* imag) const {
  Workspace work(*this);
  const auto [even, odd] = work.numbers();
  for (Index j = 0; j < half_; ++j) {
    even[j] = values[2 * j];
    odd[j] = values[2 * j + 1];
  }
  const auto [re, im] = transform(work);
  const float norm = 1.0f / std::sqrt(static_cast<float>(2 * half_));
  const float factor = norm * std::numbers::sqrt2_v<float> / 2;  // of sums of two
  add_turned_mirror(re, im, odd_real_.data(), odd_imag_.data(), 1.0f, factor, half_, real, imag);
  real[0] = norm * (re[0] + im[0]);
  real[half_] = norm * (re[0] - im[0]);
  imag[0] = imag[half_] = 0.0f;
}

void SingleFftPlan::inverse(const float* real, const float* imag, float* values) const {
  Workspace work(*this);
  const float norm = 1.0f / std::sqrt(static_cast<float>(2 * half_));
  const float factor = norm / std::numbers::sqrt2_v<float>;
  // The inverse DFT is the DFT with planes swapped.
  const auto [im, re] = work.numbers();
  add_turned_mirror(real, imag, odd_real_.data(), odd_imag_.data(), -1.0f, factor, half_, re, im);
  re[0] = norm * (real[0] + real[half_]);
  im[0] = norm * (real[0] - real[half_]);
  const auto [odd, even] = transform(work);
  for (Index j = 0; j < half_; ++j) {
    values[2 * j] = even[j];
    values[2 * j + 1] = odd[j];
  }
}

}  // namespace llava_fa::cpu

// One sequence spread over the lanes: the sub-transforms, the turns between, the DFTs across lanes.
#include "fft_single.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace llava_fa::cpu {
namespace {

Lane* as_lanes(float* values) { return reinterpret_cast<Lane*>(values); }

// rows (kLanes, count) = transpose of lanes (count, kLanes).
void lanes_to_planes(const Lane* lanes, Index count, float* rows) {
  const float* in = reinterpret_cast<const float*>(lanes);
  for (Index first = 0; first < count; first += kLanes) {
    for (Index s = 0; s < kLanes; ++s) {
      for (Index k = first; k < first + kLanes; ++k) rows[s * count + k] = in[k * kLanes + s];
    }
  }
}

}  // namespace

SingleFftPlan::SingleFftPlan(Index length)
    : length_(length),
      within_(FftPlan::cached(length / kLanes)),
      across_(FftPlan::cached(kLanes)),
      turn_real_(length),
      turn_imag_(length) {
  for (Index k = 0; k < length / kLanes; ++k) {
    for (Index s = 0; s < kLanes; ++s) {
      const double angle = -2.0 * std::numbers::pi * static_cast<double>(s * k) / double(length);
      turn_real_.data()[k * kLanes + s] = static_cast<float>(std::cos(angle));
      turn_imag_.data()[k * kLanes + s] = static_cast<float>(std::sin(angle));
    }
  }
}

void SingleFftPlan::forward(float* real, float* imag) const {
  const Index count = length_ / kLanes;
  FloatBuffer work(2 * length_ + within_.scratch_lanes() * kLanes);
  LaneSpan data = {as_lanes(work.data()), as_lanes(work.data()) + count};
  std::copy_n(real, length_, work.data());
  std::copy_n(imag, length_, work.data() + length_);
  data = within_.forward(data, as_lanes(work.data()) + 2 * count);
  for (Index k = 0; k < count; ++k) {
    const Lane c = load_lane(turn_real_.data() + k * kLanes);
    const Lane s = load_lane(turn_imag_.data() + k * kLanes);
    const Lane re = data.re[k], im = data.im[k];
    data.re[k] = re * c - im * s;
    data.im[k] = re * s + im * c;
  }
  lanes_to_planes(data.re, count, real);
  lanes_to_planes(data.im, count, imag);

  FloatBuffer small((2 * kLanes + across_.scratch_lanes()) * kLanes);
  LaneSpan column = {as_lanes(small.data()), as_lanes(small.data()) + kLanes};
  for (Index k = 0; k < count; k += kLanes) {
    for (Index s = 0; s < kLanes; ++s) {
      column.re[s] = load_lane(real + s * count + k);
      column.im[s] = load_lane(imag + s * count + k);
    }
    const LaneSpan out = across_.forward(column, column.im + kLanes);
    for (Index q = 0; q < kLanes; ++q) {
      store_lane(real + q * count + k, out.re[q]);
      store_lane(imag + q * count + k, out.im[q]);
    }
  }
}

}  // namespace llava_fa::cpu

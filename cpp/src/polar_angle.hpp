// Angles for the search of the nearest point, as short polynomials without branches or calls.
#pragma once

#include <algorithm>
#include <cmath>

#include "device_callable.hpp"

namespace llava_fa {

// atan(q) / (2 pi) on [0, 1]: minimax polynomial in q^2, error below 1e-9 turns before rounding.
LLAVA_FA_SHARED float turns_of_ratio(float q) {
  const float s = q * q;
  float p = 0.00039099f;
  p = p * s - 0.00229203f;
  p = p * s + 0.00633134f;
  p = p * s - 0.0115146f;
  p = p * s + 0.01670957f;
  p = p * s - 0.02253829f;
  p = p * s + 0.03180856f;
  p = p * s - 0.05305048f;
  p = p * s + 0.15915493f;
  return p * q;
}

// Angle of (x, y) in turns, within [-1/2, 1/2].
LLAVA_FA_SHARED float angle_in_turns(float x, float y) {
  const float ax = std::fabs(x), ay = std::fabs(y);
  const float small = std::min(ax, ay), large = std::max(ax, ay);
  float turns = turns_of_ratio(small / std::max(large, 1e-30f));
  turns = ay > ax ? 0.25f - turns : turns;
  turns = x < 0.0f ? 0.5f - turns : turns;
  return std::copysign(turns, y);
}

// cos(2 pi d) for |d| <= 1/2: minimax polynomial in d^2, error below 2e-10 before rounding.
LLAVA_FA_SHARED float cosine_of_turns(float d) {
  const float s = d * d;
  float p = -1.45323703f;
  p = p * s + 7.80024055f;
  p = p * s - 26.40470569f;
  p = p * s + 60.24213773f;
  p = p * s - 85.45665887f;
  p = p * s + 64.9393891f;
  p = p * s - 19.73920874f;
  return p * s + 1.0f;
}

// Nearest integer, ties to even, without a library call; |x| < 2^22.
LLAVA_FA_SHARED float round_nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

}  // namespace llava_fa

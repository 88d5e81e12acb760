// SIMD vocabulary of the CPU backend: one `Lane` holds the same element of kLanes transforms.
#pragma once

#include <cstring>

#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

#if defined(__AVX512F__)
inline constexpr Index kLanes = 16;
#else
inline constexpr Index kLanes = 8;  // one AVX2 register; the compiler splits it for other machines
#endif

typedef float Lane __attribute__((vector_size(kLanes * sizeof(float)), aligned(kLanes * 4)));

inline Lane load_lane(const float* p) {
  Lane v;
  std::memcpy(&v, p, sizeof(Lane));
  return v;
}

inline void store_lane(float* p, Lane v) { std::memcpy(p, &v, sizeof(Lane)); }

inline Lane broadcast(float x) { return Lane{} + x; }

// One complex lane vector.
struct ComplexLane {
  Lane re;
  Lane im;
};

inline ComplexLane operator+(ComplexLane a, ComplexLane b) { return {a.re + b.re, a.im + b.im}; }
inline ComplexLane operator-(ComplexLane a, ComplexLane b) { return {a.re - b.re, a.im - b.im}; }
// -i * a
inline ComplexLane times_minus_i(ComplexLane a) { return {a.im, -a.re}; }
inline ComplexLane times(ComplexLane a, float re, float im) {
  return {a.re * re - a.im * im, a.re * im + a.im * re};
}

}  // namespace llava_fa::cpu

// The counter-based generator behind random signs and random blocks (docs/format.md, "Signs").
#pragma once

#include <cstdint>

namespace llava_fa {

// splitmix64 of the state seed + golden * (counter + 1) (Steele, Lea, Flood 2014).
constexpr std::uint64_t counter_random(std::uint64_t seed, std::uint64_t counter) {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15ull * (counter + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Uniform in (0, 1), 53 bits.
constexpr double unit_interval(std::uint64_t seed, std::uint64_t counter) {
  return (static_cast<double>(counter_random(seed, counter) >> 11) + 0.5) * 0x1.0p-53;
}

}  // namespace llava_fa

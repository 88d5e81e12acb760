// Design of polar constellations from closed forms (docs/method.md, "Constellations").
//
// For a unit-power circular Gaussian the magnitude has density 2 rho exp(-rho^2). A ring that
// serves magnitudes in [a, b) with n phases and centroid factor s = sin(pi/n) / (pi/n) has
//   probability P = exp(-a^2) - exp(-b^2),  mean E = E[rho | a <= rho < b],
//   best radius r = s E,  and contributes -P r^2 to the distortion D = 1 - sum P r^2;
// the threshold between neighbouring rings is (r2^2 - r1^2) / (2 (r2 s2 - r1 s1)).
// 1. Alternating radii and thresholds (Lloyd-Max) converges for given phase counts.
// 2. `product` takes equal counts 2^b and the best split of bits; `ring` searches the counts by
//    moving points between rings. The search uses decisions by magnitude; the encoder's exact
//    nearest point, with odd rings turned by half a phase, is 1 to 3 % better still.
// 3. `ring` of 6 bits has counts that are multiples of four: its 64 points are 16 points, a table
//    that fits the registers of every processor, and their quarter turns. With exact decisions its
//    distortion is 0.3 % below that of the counts found by the search.
// 4. `ring` of 8 bits has 16 rings of 16 phases: 3 % more distortion than free counts, but radius
//    and phase are four bits each. The top bit of its codes is a sign, and the low four tell the
//    angle up to it.
#include "llava_fa/constellation.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <numbers>

#include "checks.hpp"

namespace llava_fa {
namespace {

constexpr std::array<std::string_view, 4> kCodecNames = {"uniform", "product", "ring", "trellis"};
constexpr int kConvergedIterations = 400;
constexpr int kTrialIterations = 12;

double centroid_factor(int phases) {
  const double half_angle = std::numbers::pi / phases;
  return phases == 1 ? 0.0 : std::sin(half_angle) / half_angle;
}

struct RayleighPart {
  double probability;
  double mean_times_probability;
};

RayleighPart rayleigh_part(double a, double b) {
  constexpr double kHalfSqrtPi = 0.88622692545275801365;
  const double tail_a = std::exp(-a * a);
  const double tail_b = std::isinf(b) ? 0.0 : std::exp(-b * b);
  const double edge_b = std::isinf(b) ? 0.0 : b * tail_b;
  return {tail_a - tail_b, a * tail_a - edge_b + kHalfSqrtPi * (std::erfc(a) - std::erfc(b))};
}

// Phase counts with the thresholds, radii and distortion that Lloyd-Max gives them.
struct RingDesign {
  std::vector<int> phases;
  std::vector<double> thresholds;  // rings + 1: 0, inner ones, infinity
  std::vector<double> radii;
  double distortion = 1.0;
};

void update_radii(RingDesign& design) {
  design.distortion = 1.0;
  for (std::size_t i = 0; i < design.phases.size(); ++i) {
    const RayleighPart part = rayleigh_part(design.thresholds[i], design.thresholds[i + 1]);
    const double mean = part.probability > 0 ? part.mean_times_probability / part.probability : 0.0;
    design.radii[i] = centroid_factor(design.phases[i]) * mean;
    design.distortion -= part.probability * design.radii[i] * design.radii[i];
  }
}

// False if neighbouring rings leave no threshold between them.
bool update_thresholds(RingDesign& design) {
  for (std::size_t i = 0; i + 1 < design.phases.size(); ++i) {
    const double r1 = design.radii[i], r2 = design.radii[i + 1];
    const double s1 = centroid_factor(design.phases[i]), s2 = centroid_factor(design.phases[i + 1]);
    const double threshold = (r2 * r2 - r1 * r1) / (2.0 * (r2 * s2 - r1 * s1));
    if (!(threshold > design.thresholds[i]) || !std::isfinite(threshold)) return false;
    design.thresholds[i + 1] = threshold;
  }
  return true;
}

bool lloyd_max(RingDesign& design, int iterations) {
  update_radii(design);
  for (int i = 0; i < iterations; ++i) {
    const double before = design.distortion;
    if (!update_thresholds(design)) return false;
    update_radii(design);
    if (before - design.distortion < 1e-14) break;
  }
  return true;
}

// Thresholds for `count` rings by companding, density of points proportional to exp(-rho^2 / 2).
RingDesign companded_start(int count, int points) {
  RingDesign design;
  design.radii.assign(count, 0.0);
  design.thresholds.assign(count + 1, std::numeric_limits<double>::infinity());
  design.thresholds[0] = 0.0;
  double total = 0;
  std::vector<double> share(count);
  for (int i = 0; i < count; ++i) {
    double low = design.thresholds[i], high = 8.0;
    for (int step = 0; step < 60 && i + 1 < count; ++step) {  // invert erf(t / 2) = (i+1) / count
      const double middle = 0.5 * (low + high);
      (std::erf(middle / 2) < (i + 1.0) / count ? low : high) = middle;
    }
    if (i + 1 < count) design.thresholds[i + 1] = low;
    const double centre = i + 1 < count ? 0.5 * (design.thresholds[i] + low) : low + 0.3;
    share[i] = centre * std::exp(-centre * centre / 4);
    total += share[i];
  }
  int left = points;
  for (int i = 0; i < count; ++i) {
    const int wanted = static_cast<int>(std::lround(points * share[i] / total));
    design.phases.push_back(std::max(1, std::min(wanted, left - (count - 1 - i))));
    left -= design.phases.back();
  }
  design.phases.back() += left;
  return design;
}

// Moves `step` points between two rings while that lowers the distortion.
void improve_counts(RingDesign& design) {
  const int rings = static_cast<int>(design.phases.size());
  int points = 0;
  for (int n : design.phases) points += n;
  for (int step = std::max(1, points / 64); step >= 1; step /= 2) {
    for (bool improved = true; improved;) {
      improved = false;
      for (int from = 0; from < rings; ++from) {
        for (int to = 0; to < rings; ++to) {
          if (from == to || design.phases[from] <= step) continue;
          RingDesign trial = design;
          trial.phases[from] -= step;
          trial.phases[to] += step;
          if (lloyd_max(trial, kTrialIterations) && trial.distortion < design.distortion - 1e-10) {
            design = std::move(trial);
            improved = true;
          }
        }
      }
    }
  }
  lloyd_max(design, kConvergedIterations);
}

RingDesign design_rings(int points) {
  RingDesign best;
  const int typical = static_cast<int>(std::sqrt(points / 2.0));
  for (int rings = std::max(1, typical); rings <= std::min(points, typical + 1); ++rings) {
    RingDesign design = companded_start(rings, points);
    if (!lloyd_max(design, kConvergedIterations)) continue;
    improve_counts(design);
    if (design.distortion < best.distortion) best = std::move(design);
  }
  return best;
}

// Rings of equal counts, every other one turned by half a phase, under exact nearest-point
// decisions. By symmetry they depend on the angle to the nearest phase of the even rings only, up
// to pi / phases; sums over a grid of magnitudes and such angles replace the integrals.
class EvenRings {
 public:
  EvenRings(int rings, int phases) : radii_(rings), moment_(rings), weight_(rings) {
    for (int i = 0; i < rings; ++i) {  // counts equal shares of the density exp(-rho^2 / 2)
      radii_[i] = std::sqrt(-2.0 * std::log1p(-(i + 0.5) / rings));
    }
    for (int a = 0; a < kAngles; ++a) {
      const double angle = std::numbers::pi / phases * (a + 0.5) / kAngles;
      cosines_.push_back({std::cos(angle), std::cos(std::numbers::pi / phases - angle)});
    }
  }

  // One step of Lloyd's iteration, lengthened by `relaxation`; the distortion before it.
  double step(double relaxation) {
    std::fill(moment_.begin(), moment_.end(), 0.0);
    std::fill(weight_.begin(), weight_.end(), 0.0);
    double distortion = 0;
    for (int i = 0; i < kMagnitudes; ++i) {
      const double rho = (i + 0.5) / kMagnitudes * kLargestMagnitude;
      const double mass = 2.0 * rho * std::exp(-rho * rho) * kLargestMagnitude / kMagnitudes;
      for (const std::array<double, 2>& cosine : cosines_) {
        distortion += mass / kAngles * (rho * rho + assign(rho, cosine, mass / kAngles));
      }
    }
    for (std::size_t i = 0; i < radii_.size(); ++i) {
      if (weight_[i] > 0) radii_[i] += relaxation * (moment_[i] / weight_[i] - radii_[i]);
    }
    return distortion;
  }

  const std::vector<double>& radii() const { return radii_; }

 private:
  static constexpr int kMagnitudes = 500, kAngles = 16;
  static constexpr double kLargestMagnitude = 4.5;

  // Gives one grid point to its nearest ring; returns the squared distance without rho^2.
  double assign(double rho, const std::array<double, 2>& cosine, double mass) {
    double least = std::numeric_limits<double>::infinity();
    std::size_t nearest = 0;
    for (std::size_t i = 0; i < radii_.size(); ++i) {
      const double cost = radii_[i] * (radii_[i] - 2.0 * rho * cosine[i % 2]);
      if (cost < least) {
        least = cost;
        nearest = i;
      }
    }
    moment_[nearest] += mass * rho * cosine[nearest % 2];
    weight_[nearest] += mass;
    return least;
  }

  std::vector<double> radii_, moment_, weight_;
  std::vector<std::array<double, 2>> cosines_;  // to the nearest phase of even and of odd rings
};

RingDesign design_even_rings(int rings, int phases) {
  EvenRings even(rings, phases);
  for (int i = 0; i < kConvergedIterations; ++i) even.step(/*relaxation=*/1.6);
  RingDesign design;
  for (int i = 0; i < 10; ++i) design.distortion = even.step(/*relaxation=*/1.0);
  design.radii = even.radii();
  design.phases.assign(rings, phases);
  return design;
}

// Sixteen points and their quarter turns.
RingDesign design_quarter_turns() {
  constexpr std::array<int, 5> kPhases = {4, 12, 16, 16, 16};
  RingDesign design = companded_start(static_cast<int>(kPhases.size()), 64);
  design.phases.assign(kPhases.begin(), kPhases.end());
  lloyd_max(design, kConvergedIterations);
  return design;
}

RingDesign design_product(int code_bits) {
  RingDesign best;
  for (int magnitude_bits = 0; magnitude_bits < code_bits; ++magnitude_bits) {
    RingDesign design = companded_start(1 << magnitude_bits, 1 << code_bits);
    design.phases.assign(std::size_t{1} << magnitude_bits, 1 << (code_bits - magnitude_bits));
    if (!lloyd_max(design, kConvergedIterations)) continue;
    if (design.distortion < best.distortion) best = std::move(design);
  }
  return best;
}

// The paper's levels, (i + 1/2) / count of the row's maximum, and its splits of the bits.
RingDesign design_uniform(int code_bits) {
  constexpr std::array<int, kMaxCodeBits + 1> kMagnitudeBits = {0, 0, 0, 1, 2, 2, 2, 3, 3, 4, 4};
  const int magnitude_bits = kMagnitudeBits[code_bits];
  RingDesign design;
  const int rings = 1 << magnitude_bits;
  design.phases.assign(rings, 1 << (code_bits - magnitude_bits));
  for (int i = 0; i < rings; ++i) design.radii.push_back((i + 0.5) / rings);
  design.distortion = std::numeric_limits<double>::quiet_NaN();  // depends on the row's maximum
  return design;
}

Constellation build(Codec codec, int code_bits) {
  const RingDesign design = codec == Codec::product   ? design_product(code_bits)
                            : codec == Codec::uniform ? design_uniform(code_bits)
                            : code_bits == 6          ? design_quarter_turns()
                            : code_bits == 8          ? design_even_rings(16, 16)
                                                      : design_rings(1 << code_bits);
  const std::size_t count = std::size_t{1} << code_bits;
  Constellation out;
  out.codec = codec;
  out.code_bits = code_bits;
  if (codec == Codec::ring && code_bits == 6) out.turns = 4;
  if (codec == Codec::ring && code_bits == 8) out.turns = 2;
  out.design_distortion = design.distortion;
  out.point_real.resize(count);
  out.point_imag.resize(count);
  out.point_pairs.resize(2 * count);
  for (std::size_t i = 0; i < design.phases.size(); ++i) {
    const int phases = design.phases[i], first_point = static_cast<int>(out.point_code.size());
    const float offset = codec == Codec::ring && i % 2 == 1 ? 0.5f : 0.0f;
    out.rings.push_back({static_cast<float>(design.radii[i]), phases, offset, first_point});
    const int part = phases / out.turns, codes_of_part = (1 << code_bits) / out.turns;
    for (int p = 0; p < phases; ++p) {
      const int code = p / part * codes_of_part + first_point / out.turns + p % part;
      const double angle = 2.0 * std::numbers::pi * (p + static_cast<double>(offset)) / phases;
      const auto real = static_cast<float>(design.radii[i] * std::cos(angle));
      const auto imag = static_cast<float>(design.radii[i] * std::sin(angle));
      out.point_code.push_back(static_cast<std::uint16_t>(code));
      out.point_real[code] = out.point_pairs[2 * code] = real;
      out.point_imag[code] = out.point_pairs[2 * code + 1] = imag;
    }
  }
  return out;
}

}  // namespace

std::string_view codec_name(Codec codec) { return kCodecNames[static_cast<std::size_t>(codec)]; }

Codec codec_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kCodecNames.size(); ++i) {
    if (kCodecNames[i] == name) return static_cast<Codec>(i);
  }
  throw Error(ErrorCode::invalid_argument,
              concat("codec is \"", name,
                     "\", expected \"uniform\", \"product\", \"ring\" or \"trellis\""));
}

const Constellation& constellation(Codec codec, int code_bits) {
  require_argument(code_bits >= kMinCodeBits && code_bits <= kMaxCodeBits, "code_bits is ",
                   code_bits, ", expected ", kMinCodeBits, " to ", kMaxCodeBits);
  require_argument(codec != Codec::trellis,
                   "the trellis has no constellation: its codes depend on ", "each other");
  static std::mutex mutex;
  static std::array<std::array<std::unique_ptr<Constellation>, kMaxCodeBits + 1>, 3> designed;
  const std::lock_guard lock(mutex);
  auto& slot = designed[static_cast<std::size_t>(codec)][code_bits];
  if (!slot) slot = std::make_unique<Constellation>(build(codec, code_bits));
  return *slot;
}

}  // namespace llava_fa

// Constellations: the design's table, point counts, and the closed forms behind them.
#include <doctest/doctest.h>

#include <cmath>
#include <map>

#include "llava_fa/constellation.hpp"
#include "llava_fa/error.hpp"

using namespace llava_fa;

TEST_CASE("design distortions reach the reference table within 2 %") {
  const std::map<int, double> ring = {{2, 0.363},  {3, 0.2036}, {4, 0.1093}, {5, 0.0583},
                                      {6, 0.0306}, {7, 0.0157}, {8, 0.0082}};
  const std::map<int, double> product = {
      {4, 0.1198}, {5, 0.0716}, {6, 0.0349}, {7, 0.0190}, {8, 0.0095}};
  for (const auto& [bits, distortion] : ring) {
    CHECK(constellation(Codec::ring, bits).design_distortion <= 1.02 * distortion);
  }
  for (const auto& [bits, distortion] : product) {
    CHECK(constellation(Codec::product, bits).design_distortion ==
          doctest::Approx(distortion).epsilon(0.02));
  }
}

TEST_CASE("no constellation beats the Shannon bound, and rings beat products") {
  for (int bits = kMinCodeBits; bits <= kMaxCodeBits; ++bits) {
    const double ring = constellation(Codec::ring, bits).design_distortion;
    CHECK(ring > std::pow(2.0, -bits));
    CHECK(ring <= constellation(Codec::product, bits).design_distortion + 1e-9);
  }
}

TEST_CASE("every code is one point, on rings of increasing radius") {
  for (const Codec codec : {Codec::uniform, Codec::product, Codec::ring}) {
    for (int bits = kMinCodeBits; bits <= kMaxCodeBits; ++bits) {
      const Constellation& points = constellation(codec, bits);
      CHECK(points.point_real.size() == std::size_t{1} << bits);
      int next = 0;
      float radius = -1;
      for (const Ring& ring : points.rings) {
        CHECK(ring.first_code == next);
        CHECK(ring.radius > radius);
        next += ring.phases;
        radius = ring.radius;
      }
      CHECK(next == 1 << bits);
    }
  }
}

TEST_CASE("the one-bit ring is the centroid of a half plane") {
  const Constellation& points = constellation(Codec::ring, 1);
  CHECK(points.rings[0].radius == doctest::Approx(1 / std::sqrt(std::acos(-1.0))));
}

TEST_CASE("unknown widths and names are refused") {
  CHECK_THROWS_AS(constellation(Codec::ring, 0), Error);
  CHECK_THROWS_AS(constellation(Codec::ring, 11), Error);
  CHECK_THROWS_WITH_AS(
      codec_from_name("hexagonal"),
      "codec is \"hexagonal\", expected \"uniform\", \"product\", \"ring\" or \"trellis\"", Error);
}

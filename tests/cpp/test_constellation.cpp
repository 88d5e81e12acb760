// Constellations: the design's table, point counts, and the closed forms behind them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <map>
#include <vector>

#include "llava_fa/constellation.hpp"
#include "llava_fa/error.hpp"

using namespace llava_fa;

using Complex = std::complex<double>;

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
        CHECK(ring.first_point == next);
        CHECK(ring.radius > radius);
        next += ring.phases;
        radius = ring.radius;
      }
      CHECK(next == 1 << bits);
    }
  }
}

TEST_CASE("codes of points ring by ring are each used once, in order unless parts of turns lead") {
  for (const Codec codec : {Codec::uniform, Codec::product, Codec::ring}) {
    for (int bits = kMinCodeBits; bits <= kMaxCodeBits; ++bits) {
      const Constellation& points = constellation(codec, bits);
      std::vector<std::uint16_t> codes = points.point_code;
      CHECK(points.turns == (codec != Codec::ring ? 1 : bits == 6 ? 4 : bits == 8 ? 2 : 1));
      CHECK(std::is_sorted(codes.begin(), codes.end()) == (points.turns == 1));
      std::sort(codes.begin(), codes.end());
      for (std::size_t i = 0; i < codes.size(); ++i) REQUIRE(codes[i] == i);
      CHECK(codes.size() == std::size_t{1} << bits);
    }
  }
}

TEST_CASE("codes in which parts of turns lead are those of the first part, turned") {
  for (const int bits : {6, 8}) {
    const Constellation& points = constellation(Codec::ring, bits);
    const int count = 1 << bits, part = count / points.turns;
    for (int code = 0; code < count; ++code) {
      const double turn = 2 * std::acos(-1.0) * (code / part) / points.turns;
      const Complex first(points.point_real[code % part], points.point_imag[code % part]);
      const Complex point(points.point_real[code], points.point_imag[code]);
      CHECK(std::abs(point - std::polar(1.0, turn) * first) < 1e-6);
    }
  }
}

TEST_CASE("in codes of the 8-bit ring the top bit is the sign and the low four are the angle") {
  const Constellation& points = constellation(Codec::ring, 8);
  for (int code = 0; code < 128; ++code) {
    const Complex point(points.point_real[code], points.point_imag[code]);
    const Complex opposite(points.point_real[code + 128], points.point_imag[code + 128]);
    CHECK(std::abs(point + opposite) < 1e-6);
    const Complex innermost(points.point_real[code & 15], points.point_imag[code & 15]);
    CHECK(std::arg(point) == doctest::Approx(std::arg(innermost)));
    CHECK(std::abs(point) == doctest::Approx(points.rings[code / 8].radius));
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

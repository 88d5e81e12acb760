// Polar codec: nearest points by brute force, least-squares scale, packing, decoding any row range.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "llava_fa/error.hpp"
#include "llava_fa/polar_codec.hpp"
#include "llava_fa/runtime.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

double squared_distance_to(const Constellation& points, std::size_t code, double x, double y) {
  const double dx = x - points.point_real[code], dy = y - points.point_imag[code];
  return dx * dx + dy * dy;
}

double row_root_mean_square(const ComplexMatrix& values, Index row) {
  double energy = 0;
  for (Index l = 0; l < values.cols(); ++l) energy += std::norm(reference::entry(values, row, l));
  return std::sqrt(energy / double(values.cols()));
}

}  // namespace

TEST_CASE("the encoder finds the nearest point of the constellation") {
  ComplexMatrix values = reference::complex_gaussian(3, 501, 21);
  for (const Codec codec : {Codec::product, Codec::ring}) {
    for (int bits = kMinCodeBits; bits <= kMaxCodeBits; ++bits) {
      const Constellation& points = constellation(codec, bits);
      const PolarCodes codes = polar_encode(values, points, false);
      for (Index k = 0; k < values.rows(); ++k) {
        const std::vector<std::uint16_t> row = codes_of_row(codes, k);
        const double scale = row_root_mean_square(values, k);
        for (Index l = 0; l < values.cols(); ++l) {
          const auto z = reference::entry(values, k, l) / scale;
          double best = 1e9;
          for (std::size_t c = 0; c < points.point_real.size(); ++c) {
            best = std::min(best, squared_distance_to(points, c, z.real(), z.imag()));
          }
          // Ties within float32 rounding of the distances may go either way.
          CHECK(squared_distance_to(points, row[l], z.real(), z.imag()) <= best + 4e-6);
        }
      }
    }
  }
}

TEST_CASE("the row scale is the least-squares scale, rounded to binary16") {
  const ComplexMatrix values = reference::complex_gaussian(4, 300, 22);
  const Constellation& points = constellation(Codec::ring, 6);
  ComplexMatrix decoded = values.clone();
  polar_encode(decoded, points, /*write_back=*/true);
  for (Index k = 0; k < values.rows(); ++k) {
    double cross = 0, energy = 0;
    for (Index l = 0; l < values.cols(); ++l) {
      const auto z = reference::entry(values, k, l), c = reference::entry(decoded, k, l);
      cross += (z * std::conj(c)).real();
      energy += std::norm(c);
    }
    CHECK(cross / energy == doctest::Approx(1.0).epsilon(6e-4));  // half a unit of binary16
  }
}

TEST_CASE("a column weight moves the scale to the weighted optimum") {
  const ComplexMatrix values = reference::complex_gaussian(1, 64, 23);
  std::vector<float> weight(64, 1e-6f);
  weight[5] = 1.0f;
  ComplexMatrix decoded = values.clone();
  polar_encode(decoded, constellation(Codec::ring, 3), true, weight);
  const auto z = reference::entry(values, 0, 5), c = reference::entry(decoded, 0, 5);
  CHECK((z * std::conj(c)).real() / std::norm(c) == doctest::Approx(1.0).epsilon(1e-3));
}

TEST_CASE("packing then unpacking is the identity at every width, with zero padding") {
  std::mt19937 engine(24);
  for (int bits = 1; bits <= 10; ++bits) {
    for (const Index count : {1, 2, 7, 8, 9, 31, 64, 100}) {
      std::vector<std::uint16_t> codes(count), back(count);
      for (auto& code : codes) code = static_cast<std::uint16_t>(engine() % (1u << bits));
      std::vector<std::uint8_t> packed(packed_row_bytes(count, bits), 0xff);
      pack_codes(codes, bits, packed.data());
      unpack_codes(packed.data(), bits, back);
      CHECK(codes == back);
      const int used = static_cast<int>(count * bits % 8);
      if (used != 0) CHECK((packed.back() >> used) == 0);
    }
  }
}

TEST_CASE("rows lie in panels of 64, whose bytes take turns") {
  ComplexMatrix values = reference::complex_gaussian(150, 37, 27);
  const PolarCodes codes = polar_encode(values, constellation(Codec::ring, 5), false);
  const Index width = packed_row_bytes(37, 5);
  std::vector<std::uint8_t> row(width);
  for (Index k = 0; k < 150; ++k) {
    pack_codes(codes_of_row(codes, k), 5, row.data());
    const Index first = k / 64 * 64, panel_rows = std::min<Index>(64, 150 - first);
    for (Index b = 0; b < width; ++b) {
      CHECK(codes.packed[first * width + b * panel_rows + k - first] == row[b]);
    }
  }
}

TEST_CASE("any range of rows decodes on its own, to what the encoder wrote back") {
  ComplexMatrix values = reference::complex_gaussian(11, 37, 25);
  const Constellation& points = constellation(Codec::ring, 5);
  const PolarCodes codes = polar_encode(values, points, true);
  CHECK(reference::distance(polar_decode(codes, points), values) == 0.0);
  ComplexMatrix part(4, 37);
  polar_decode_rows(codes.packed.data(), codes.row_scale.data(), 11, 37, points, 6, 4, part.real(),
                    part.imag());
  for (Index k = 0; k < 4; ++k) {
    for (Index l = 0; l < 37; ++l) {
      CHECK(reference::entry(part, k, l) == reference::entry(values, 6 + k, l));
    }
  }
}

TEST_CASE("zero rows decode to zero, one large entry to itself") {
  ComplexMatrix values(2, 16);
  std::fill_n(values.real(), 2 * values.count(), 0.0f);
  values.imag()[16 + 3] = 5.0f;
  polar_encode(values, constellation(Codec::ring, 8), true);
  for (Index l = 0; l < 16; ++l) CHECK(reference::entry(values, 0, l) == reference::Complex(0, 0));
  CHECK(std::abs(reference::entry(values, 1, 3) - reference::Complex(0, 5)) < 1.2);
}

TEST_CASE("codes do not depend on the number of threads") {
  // Large enough that the work is really shared out (worthwhile_threads).
  ComplexMatrix values = reference::complex_gaussian(400, 1000, 26);
  set_num_threads(1);
  const PolarCodes one = polar_encode(values, constellation(Codec::ring, 4), false);
  set_num_threads(4);
  const PolarCodes four = polar_encode(values, constellation(Codec::ring, 4), false);
  set_num_threads(0);
  CHECK(one.packed == four.packed);
  CHECK(one.row_scale == four.row_scale);
}

TEST_CASE("scales beyond binary16 and weights of another length are refused") {
  ComplexMatrix values = reference::complex_gaussian(2, 8, 27);
  const std::vector<float> wrong(3, 1.0f);
  CHECK_THROWS_AS(polar_encode(values, constellation(Codec::ring, 4), false, wrong), Error);
  for (Index i = 0; i < 2 * values.count(); ++i) values.real()[i] *= 1e6f;
  CHECK_THROWS_AS(polar_encode(values, constellation(Codec::ring, 4), false), Error);
}

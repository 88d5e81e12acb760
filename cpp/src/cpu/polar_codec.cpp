// CPU polar codec, one row at a time:
//
// 1. The row scale is the row's root mean square (`uniform`: its largest magnitude).
// 2. Every entry becomes (magnitude, angle in turns) relative to the scale. For each ring the
//    nearest of its phases follows by rounding, and the ring with the smallest squared distance
//    rho^2 + r^2 - 2 rho r cos(angle difference) wins: the exact nearest point for the cost of one
//    short polynomial per ring.
// 3. The scale is refitted by weighted least squares, sum w Re(z conj c) / sum w |c|^2, and
// rounded.
// 4. Codes are packed.
#include <algorithm>
#include <cmath>

#include "../bit_packing.hpp"
#include "../half_float.hpp"
#include "../polar_angle.hpp"
#include "backend.hpp"
#include "parallel.hpp"
#include "points.hpp"
#include "polar_codec.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRowsPerItem = 8;
constexpr double kEncodeNanoseconds = 5.0;  // per entry and ring, roughly
constexpr double kDecodeNanoseconds = 2.0;
constexpr Index kStrip = 64;  // entries per inner loop: all temporaries stay in the first cache

void encode_strip(const float* real, const float* imag, Index count, float inverse_scale,
                  const Constellation& points, std::uint16_t* codes) {
  alignas(64) float magnitude[kStrip], turns[kStrip], best[kStrip];
  alignas(64) std::int32_t chosen[kStrip];
  for (Index l = 0; l < count; ++l) {
    const float x = real[l] * inverse_scale, y = imag[l] * inverse_scale;
    magnitude[l] = std::sqrt(x * x + y * y);
    turns[l] = angle_in_turns(x, y);
    best[l] = 3.4e38f;
    chosen[l] = 0;
  }
  for (const Ring& ring : points.rings) {
    const float phases = static_cast<float>(ring.phases), inverse = 1.0f / phases;
    const float offset = ring.phase_offset, radius = ring.radius;
    const std::int32_t first = ring.first_point, total = ring.phases;
    for (Index l = 0; l < count; ++l) {
      const float position = turns[l] * phases - offset;
      const float phase = round_nearest(position);
      const float cosine = cosine_of_turns((position - phase) * inverse);
      const float cost = radius * (radius - 2.0f * magnitude[l] * cosine);
      std::int32_t index = static_cast<std::int32_t>(phase);
      index = index < 0 ? index + total : index;
      index = index >= total ? index - total : index;
      const bool better = cost < best[l];
      best[l] = better ? cost : best[l];
      chosen[l] = better ? first + index : chosen[l];
    }
  }
  for (Index l = 0; l < count; ++l) codes[l] = points.point_code[chosen[l]];
}

float initial_scale(const float* real, const float* imag, Index count, Codec codec) {
  double energy = 0;
  float largest = 0;
  for (Index l = 0; l < count; ++l) {
    const float square = real[l] * real[l] + imag[l] * imag[l];
    energy += square;
    largest = std::max(largest, square);
  }
  if (codec == Codec::uniform) return std::sqrt(largest);
  return static_cast<float>(std::sqrt(energy / static_cast<double>(count)));
}

// argmin_s sum w |z - s c|^2.
float refit_scale(const float* real, const float* imag, const std::uint16_t* codes, Index count,
                  const Constellation& points, const float* weight) {
  double cross = 0, energy = 0;
  for (Index l = 0; l < count; ++l) {
    const float c = points.point_real[codes[l]], d = points.point_imag[codes[l]];
    const float w = weight ? weight[l] : 1.0f;
    cross += w * (real[l] * c + imag[l] * d);
    energy += w * (c * c + d * d);
  }
  return energy > 0 ? static_cast<float>(std::max(cross / energy, 0.0)) : 0.0f;
}

// Weighted squared error of one row; optionally replaces it by its decoded values.
double finish_row(float* real, float* imag, const std::uint16_t* codes, Index count, float scale,
                  const Constellation& points, const float* weight, bool write_back) {
  double error = 0;
  for (Index l = 0; l < count; ++l) {
    const float x = scale * points.point_real[codes[l]], y = scale * points.point_imag[codes[l]];
    const float dx = real[l] - x, dy = imag[l] - y;
    error += (weight ? weight[l] : 1.0f) * (dx * dx + dy * dy);
    if (write_back) {
      real[l] = x;
      imag[l] = y;
    }
  }
  return error;
}

}  // namespace

void encode_run(const float* real, const float* imag, Index count, float inverse_scale,
                const Constellation& points, std::uint16_t* codes) {
  for (Index l = 0; l < count; l += kStrip) {
    encode_strip(real + l, imag + l, std::min(kStrip, count - l), inverse_scale, points, codes + l);
  }
}

void CpuBackend::encode_rows(ComplexMatrix& values, const Constellation& points,
                             const float* column_weight, bool write_back, int threads,
                             PolarCodes& codes, std::span<double> row_errors) const {
  const Index cols = values.cols(), row_bytes = packed_row_bytes(cols, points.code_bits);
  struct RowCodes {
    std::vector<std::uint16_t> codes;
    std::vector<std::uint8_t> packed;
  };
  auto encode_row = [&](Index k, RowCodes& row) {
    float* real = values.real() + k * cols;
    float* imag = values.imag() + k * cols;
    const float scale = initial_scale(real, imag, cols, points.codec);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    encode_run(real, imag, cols, inverse, points, row.codes.data());
    codes.row_scale[k] =
        float_to_half(refit_scale(real, imag, row.codes.data(), cols, points, column_weight));
    row_errors[k] =
        finish_row(real, imag, row.codes.data(), cols, half_to_float(codes.row_scale[k]), points,
                   column_weight, write_back);
    pack_row(row.codes.data(), cols, points.code_bits, row.packed.data());
    write_row(row.packed.data(), codes.rows, row_bytes, k, codes.packed.data());
  };
  parallel_for(
      ceil_div(values.rows(), kRowsPerItem),
      worthwhile_threads(threads,
                         kEncodeNanoseconds * double(points.rings.size() * values.count())),
      [&] {
        return RowCodes{std::vector<std::uint16_t>(cols), std::vector<std::uint8_t>(row_bytes)};
      },
      [&](Index item, RowCodes& row) {
        const Index end = std::min(values.rows(), (item + 1) * kRowsPerItem);
        for (Index k = item * kRowsPerItem; k < end; ++k) encode_row(k, row);
      });
}

void CpuBackend::decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                             Index cols, const Constellation& points, Index first_row,
                             Index row_count, int threads, float* real, float* imag) const {
  parallel_for(
      ceil_div(row_count, kRowsPerItem),
      worthwhile_threads(threads, kDecodeNanoseconds * row_count * cols),
      [&] { return RowCodesReader(packed, rows, cols, points.code_bits); },
      [&](Index item, RowCodesReader& codes) {
        const Index end = std::min(row_count, (item + 1) * kRowsPerItem);
        for (Index k = item * kRowsPerItem; k < end; ++k) {
          const float scale = half_to_float(row_scale[first_row + k]);
          decode_points(codes.row(first_row + k), cols, points.point_pairs.data(), scale,
                        real + k * cols, imag + k * cols);
        }
      });
}

}  // namespace llava_fa::cpu

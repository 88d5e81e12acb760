// Rows of a half spectrum to codes, in three steps around the choice of points: the rows' sizes,
// the nearest points of a constellation (of a trellis: trellis_search.hpp), and what the choice
// costs and stores; and codes back to rows. Twin of ../cpu/polar_codec.cpp.
#pragma once

#include <cstdint>

#include "../code_panels.hpp"
#include "../polar_angle.hpp"
#include "complex.hpp"
#include "llava_fa/constellation.hpp"
#include "number_types.hpp"
#include "reduction.hpp"
#include "trellis.hpp"

namespace llava_fa::cuda {

LLAVA_FA_SHARED float squared_size(Complex z) { return z.real * z.real + z.imag * z.imag; }

// What the points of a row are relative to: its root mean square or its largest magnitude.
enum class RowSize { root_mean_square, largest };

// sizes[k] = that of row k. Grid (rows).
struct RowSizes {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  const Complex* spectrum;  // (rows, cols)
  Index cols;
  RowSize kind;
  float gain;    // so much larger, sizes are rounded to binary16; 0: not at all
  float* sizes;  // (rows)

  static constexpr Index shared_bytes() { return kThreads * 8; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0);
    const Complex* const line = spectrum + row * cols;
    const bool largest = kind == RowSize::largest;
    const auto join = [largest](double a, double b) { return !largest ? a + b : b > a ? b : a; };
    double* const values = block.template shared<double>();
    block.phase([&](int thread) {
      double value = 0;
      for (Index l = thread; l < cols; l += kThreads) value = join(value, squared_size(line[l]));
      values[thread] = value;
    });
    join_all(block, values, join);
    block.phase([&](int thread) {
      if (thread > 0) return;
      const double square = largest ? values[0] : values[0] / static_cast<double>(cols);
      const float size = static_cast<float>(std::sqrt(square));
      sizes[row] = gain > 0.0f ? decode_scale(size, gain) / gain : size;
    });
  }

  // The row scale of a size, before any refit.
  LLAVA_FA_SHARED static float decode_scale(float size, float gain) {
    const float scale = gain * size;
    return to_float(to_half(scale < kLargestHalf ? scale : kLargestHalf));
  }
};

// The nearest point of a constellation: for every ring the nearest phase, and of those the nearest.
struct NearestPoint {
  const Ring* rings;
  int ring_count;
  const std::uint16_t* point_code;

  // Its code; z is relative to the row's size.
  LLAVA_FA_SHARED std::uint16_t operator()(Complex z) const {
    const float magnitude = std::sqrt(squared_size(z)), turns = angle_in_turns(z.real, z.imag);
    float least = 3.4e38f;
    int chosen = 0;
    for (const Ring* ring = rings; ring < rings + ring_count; ++ring) {
      const float phases = static_cast<float>(ring->phases);
      const float position = turns * phases - ring->phase_offset;
      const float phase = round_nearest(position);
      const float cosine = cosine_of_turns((position - phase) / phases);
      const float cost = ring->radius * (ring->radius - 2.0f * magnitude * cosine);
      if (!(cost < least)) continue;
      int index = static_cast<int>(phase);
      if (index < 0) index += ring->phases;
      if (index >= ring->phases) index -= ring->phases;
      least = cost;
      chosen = ring->first_point + index;
    }
    return point_code[chosen];
  }
};

// points[k, l] = the code of the point nearest to entry (k, l). Grid (rows).
struct NearestPoints {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  NearestPoint nearest;
  const Complex* spectrum;  // (rows, cols)
  Index cols;
  const float* sizes;     // (rows)
  std::uint16_t* points;  // (rows, cols)

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0);
    const float inverse = sizes[row] > 0.0f ? 1.0f / sizes[row] : 0.0f;
    block.phase([&](int thread) {
      for (Index l = row * cols + thread; l < (row + 1) * cols; l += kThreads) {
        points[l] = nearest(inverse * spectrum[l]);
      }
    });
  }
};

// Weighted sums over a row: of |z|^2, Re(z conj(c)) and |c|^2, c being the points.
struct RowSum {
  double energy, cross, power;
};

// Grid (rows).
struct RowSums {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  const Complex* spectrum;      // (rows, cols)
  const std::uint16_t* points;  // (rows, cols), or null: only energies
  Index cols;
  const Complex* table;        // what points stand for
  const float* column_weight;  // (cols), or null: ones
  RowSum* sums;                // (rows)

  static constexpr Index shared_bytes() { return kThreads * sizeof(RowSum); }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0);
    RowSum* const shares = block.template shared<RowSum>();
    block.phase([&](int thread) {
      RowSum sum = {0, 0, 0};
      for (Index l = thread; l < cols; l += kThreads) {
        const Complex z = spectrum[row * cols + l];
        const Complex c = points == nullptr ? Complex{0, 0} : table[points[row * cols + l]];
        const double weight = column_weight == nullptr ? 1.0 : column_weight[l];
        sum.energy += weight * squared_size(z);
        sum.cross += weight * (z.real * c.real + z.imag * c.imag);
        sum.power += weight * squared_size(c);
      }
      shares[thread] = sum;
    });
    join_all(block, shares, [](RowSum a, RowSum b) {
      return RowSum{a.energy + b.energy, a.cross + b.cross, a.power + b.power};
    });
    block.phase([&](int thread) {
      if (thread == 0) sums[row] = shares[0];
    });
  }
};

// Points to stored codes: the bytes of a row, each to its place in the panel. Grid (rows).
struct PackRows {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  const std::uint16_t* points;  // (rows, cols)
  Index rows;
  Index cols;
  int code_bits;
  const std::uint8_t* stored_code;  // of a trellis, by code; null: points are codes
  std::uint8_t* packed;             // packed_row_bytes(cols, code_bits) bytes per row

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0), row_bytes = packed_row_bytes(cols, code_bits);
    const RowPlace place = row_place(rows, row_bytes, row);
    block.phase([&](int thread) {
      for (Index b = thread; b < row_bytes; b += kThreads) {
        packed[place.offset + b * place.stride] = byte_of(points + row * cols, b);
      }
    });
  }

 private:
  // Code j has the bits from j code_bits on.
  LLAVA_FA_KERNEL std::uint8_t byte_of(const std::uint16_t* line, Index b) const {
    std::uint32_t byte = 0;
    for (Index j = 8 * b / code_bits; j < cols && j * code_bits < 8 * b + 8; ++j) {
      const int shift = static_cast<int>(j * code_bits - 8 * b);
      const std::uint32_t code = code_at_place(line, j);
      byte |= shift >= 0 ? code << shift : code >> -shift;
    }
    return static_cast<std::uint8_t>(byte);
  }

  LLAVA_FA_KERNEL std::uint32_t code_at_place(const std::uint16_t* line, Index place) const {
    if (stored_code == nullptr) return line[place];
    const std::uint32_t state = line[column_stored_at(cols, place)];
    return stored_code[state & ((1u << code_bits) - 1)];
  }
};

// values = diag(row_scale) points of the codes. Grid (rows).
struct DecodeRows {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  CodedRows matrix;
  const Complex* table;                // what points stand for: codes, or states of a trellis
  const std::uint8_t* code_of_stored;  // of a trellis; null: points are codes
  int state_bits;                      // of a trellis
  Complex* values;                     // (matrix.rows, matrix.cols)

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index row = block.index(0);
    const float scale = matrix.row_scale[row];
    block.phase([&](int thread) {
      for (Index l = thread; l < matrix.cols; l += kThreads) {
        values[row * matrix.cols + l] = scale * table[point_at(row, l)];
      }
    });
  }

 private:
  LLAVA_FA_KERNEL std::uint32_t point_at(Index row, Index column) const {
    if (code_of_stored == nullptr) return code_at(matrix, row, column);
    const Index place = place_of(/*trellis=*/true, matrix.cols, column);
    std::uint32_t state = 0;
    LLAVA_FA_KEEP_LOOP
    for (int back = rows_of_state(matrix.code_bits, state_bits) - 1; back >= 0; --back) {
      const Index before = row_before(matrix.rows, row, back);
      state = state << matrix.code_bits | code_of_stored[code_at(matrix, before, place)];
    }
    return state & ((1u << state_bits) - 1);
  }
};

}  // namespace llava_fa::cuda

// Both factors of the product for many activations, in the real Fourier basis. Twin of
// ../cpu/matmul.cpp, whose first lines have the formulas: columns l and n - l of a complex row
// become multipliers of Re H_l and of Im H_l.
//
// Factors are float16, for tensor cores, in one plane or in two, the second holding what rounding
// to the first leaves. Row scales stay out of them, and activations are scaled to use the range.
// Columns: those of Re H, then those of Im H, each padded with zeros to half_pitch.
#pragma once

#include "number_types.hpp"
#include "points.hpp"
#include "reduction.hpp"
#include "trellis.hpp"

namespace llava_fa::cuda {

inline constexpr Index kHalfPitchStep = 32;  // columns of a step of panel_product.hpp

constexpr Index half_pitch(Index n) {
  return (n / 2 + 1 + kHalfPitchStep - 1) / kHalfPitchStep * kHalfPitchStep;
}

// A factor (rows, 2 half_pitch) in planes.
struct FoldedFactor {
  Half* values;  // (planes, rows, 2 half_pitch)
  Index rows;
  Index half_pitch;
  int planes;  // 1 or 2

  LLAVA_FA_SHARED void put(Index row, Index column, float value) const {
    const Half rounded = to_half(value);
    Half* const place = values + row * 2 * half_pitch + column;
    *place = rounded;
    if (planes == 2) place[rows * 2 * half_pitch] = to_half(value - to_float(rounded));
  }
};

// What columns l and n - l of a complex row multiply: plus with Re H_l, minus with Im H_l; real
// parts of the result first.
struct FoldedPair {
  Complex plus, minus;
};

// a and b are the entries of columns l and n - l; of a column that is its own mirror, a alone.
LLAVA_FA_SHARED FoldedPair fold_pair(Complex a, Complex b, bool own_mirror) {
  if (own_mirror) return {a, {0, 0}};
  return {a + b, {a.imag - b.imag, b.real - a.real}};
}

// Spectra of activations to a factor whose rows are tokens, scaled by powers of two.
struct FoldActivations {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kLargestExponent = 13;  // of the scaled spectrum; float16 has 15

  const Complex* spectrum;  // (tokens, pitch), as SpectrumKernel leaves it
  Index pitch;
  Index n;
  bool trellis;  // columns in its order
  FoldedFactor factor;
  float* unit;  // (tokens): what a scaled entry of one stands for

  static constexpr Index shared_bytes() { return kThreads * 4; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Index token = block.index(0);
    const Complex* x = spectrum + token * pitch;
    float* const largest = block.template shared<float>();
    block.phase([&](int thread) { largest[thread] = largest_part(x, thread); });
    join_all(block, largest, [](float a, float b) { return b > a ? b : a; });
    block.phase([&](int thread) {
      const int exponent = scaling_exponent(largest[0]);
      if (thread == 0) unit[token] = power_of_two(-exponent);
      scale_and_put(x, token, power_of_two(exponent), thread);
    });
  }

 private:
  LLAVA_FA_KERNEL Complex entry(const Complex* x, Index l) const {
    return x[place_of(trellis, n, l)];
  }

  LLAVA_FA_KERNEL static float power_of_two(int exponent) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
  }

  // 0 for what is zero or not finite.
  LLAVA_FA_KERNEL static int scaling_exponent(float largest) {
    const std::uint32_t biased = std::bit_cast<std::uint32_t>(largest) >> 23;
    if (largest == 0.0f || biased == 255) return 0;
    const int exponent = kLargestExponent + 127 - static_cast<int>(biased);
    return exponent < 126 ? exponent : 126;
  }

  LLAVA_FA_KERNEL float largest_part(const Complex* x, int thread) const {
    float found = 0;
    for (Index l = thread; l <= n / 2; l += kThreads) {
      const Complex value = entry(x, l);
      const float real = value.real < 0 ? -value.real : value.real;
      const float imag = value.imag < 0 ? -value.imag : value.imag;
      if (real > found) found = real;
      if (imag > found) found = imag;
    }
    return found;
  }

  LLAVA_FA_KERNEL void scale_and_put(const Complex* x, Index token, float scale, int thread) const {
    for (Index l = thread; l < factor.half_pitch; l += kThreads) {
      const Complex value = l <= n / 2 ? scale * entry(x, l) : Complex{0, 0};
      factor.put(token, l, value.real);
      factor.put(token, factor.half_pitch + l, -value.imag);  // x̃ is conj(H)
    }
  }
};

// Codes of panels to a factor whose rows give first Re y of all rows, then Im y.
//
// Grid (panels * pair tiles); a thread decodes columns l and n - l of a strip of rows.
template <class Table>
struct DecodePanels {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kPairs = kThreads / kStripsPerPanel;

  CodedRows matrix;
  const void* points;   // of the Table
  int state_rows;       // of the trellis
  Index first_row;      // of the panels
  Index count;          // rows, all of them or whole panels
  FoldedFactor factor;  // (2 count, ...)

  static constexpr Index shared_bytes() { return Table::kBytes; }
  Index blocks() const {
    return (count + kPanelRows - 1) / kPanelRows * (factor.half_pitch / kPairs);
  }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Table table(block.template shared<void>(), points, matrix.code_bits);
    block.phase([&](int thread) { table.fill(thread, kThreads); });
    block.phase([&](int thread) {
      const Index tiles = factor.half_pitch / kPairs;
      const Index panel = block.index(0) / tiles;
      const Index l = block.index(0) % tiles * kPairs + thread / kStripsPerPanel;
      const Index row = panel * kPanelRows + thread % kStripsPerPanel * kStripRows;
      if (row < count) decode(table, row, l, thread);
    });
  }

 private:
  // Walks down a strip of one column.
  struct Column {
    StripBytes byte, next;
    int shift;
    std::uint32_t state;
  };

  LLAVA_FA_KERNEL Column column_of(Index row, Index column) const {
    const Index place = place_of(Table::kTrellis, matrix.cols, column);
    const Index bit = place * matrix.code_bits;
    return {load_strip(matrix, row, bit / 8), load_strip(matrix, row, bit / 8 + 1),
            static_cast<int>(bit % 8),
            Table::kTrellis ? state_before(matrix, state_rows, row, place) : 0};
  }

  LLAVA_FA_KERNEL Complex point(const Table& table, Column& column, int r, int lane) const {
    const std::uint32_t code = code_of(column.byte, column.next, r, column.shift, matrix.code_bits);
    if constexpr (!Table::kTrellis) return table.at(code, lane);
    column.state = next_state(column.state, code, matrix.code_bits);
    return table.at(column.state, lane);
  }

  LLAVA_FA_KERNEL void put(Index row, Index l, FoldedPair pair) const {
    factor.put(row, l, pair.plus.real);
    factor.put(row, factor.half_pitch + l, pair.minus.real);
    factor.put(count + row, l, pair.plus.imag);
    factor.put(count + row, factor.half_pitch + l, pair.minus.imag);
  }

  // The strip from row `row` of the factor on, columns l and n - l.
  LLAVA_FA_KERNEL void decode(const Table& table, Index row, Index l, int lane) const {
    const Index n = matrix.cols;
    const bool padding = l > n / 2, own_mirror = l == 0 || 2 * l == n;
    Column left = column_of(first_row + row, padding ? 0 : l);
    Column right = column_of(first_row + row, padding || own_mirror ? 0 : n - l);
    LLAVA_FA_UNROLL
    for (int r = 0; r < kStripRows; ++r) {
      const Complex a = point(table, left, r, lane), b = point(table, right, r, lane);
      if (row + r < count) {
        put(row + r, l, padding ? FoldedPair{} : fold_pair(a, b, own_mirror));
      }
    }
  }
};

}  // namespace llava_fa::cuda

// One activation times the codes: every code's point is looked up and multiplied in float32. Twin
// of ../cpu/point_product.cpp, for every code.
//
// Grid (panels * parts, tokens); a block multiplies 64 rows with 1024 columns.
// 1. The points go to shared memory.
// 2. A thread takes a strip of 16 rows and groups of columns: one 16-byte load per byte of the
//    group's codes, 16 points per column, 16 complex sums in registers. Neighbouring threads take
//    the four strips of a panel, then the next group, so that a warp reads whole lines.
// 3. The sums of all threads of a row are added in a fixed order, and scaled.
#pragma once

#include "code_strips.hpp"
#include "complex.hpp"
#include "points.hpp"
#include "trellis.hpp"

namespace llava_fa::cuda {

inline constexpr Index kColumnsPerPart = 1024;

// Parts that the columns of a matrix are cut into, each a row of partial results.
constexpr Index product_parts(Index cols) { return (cols + kColumnsPerPart - 1) / kColumnsPerPart; }

template <class Table, int code_bits>
struct PointProduct {
  static constexpr int kThreads = 128;
  // Of a group: their codes fill whole bytes, and no more of them than registers can hold.
  static constexpr int kColumns = code_bits % 2 == 0 ? 4 : 8;
  static constexpr int kBytes = kColumns * code_bits / 8;
  // Per multiprocessor: as many as leave enough registers.
  static constexpr int kMinBlocks = code_bits % 2 == 1 ? 2 : code_bits < 8 ? 4 : 3;

  CodedRows matrix;
  const void* points;       // of the Table
  int state_rows;           // of the trellis
  const Complex* spectrum;  // (tokens, pitch), in the codes' order, zero beyond the columns
  Index pitch;              // whole groups
  Index tokens;
  float* parts;  // (parts, tokens, 2, rows)

  static constexpr Index shared_bytes() {
    return Table::kBytes > kSumBytes ? Table::kBytes : kSumBytes;
  }
  LLAVA_FA_SHARED Index panels() const { return (matrix.rows + kPanelRows - 1) / kPanelRows; }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    const Table table(block.template shared<void>(), points, code_bits);
    block.phase([&](int thread) { table.fill(thread, kThreads); });
    typename Block::template PerThread<Sums> sums;
    block.phase([&](int thread) { multiply(block, table, thread, sums[thread]); });
    float* shared_sums = block.template shared<float>();
    block.phase([&](int thread) { put_sums(sums[thread], thread, shared_sums); });
    block.phase([&](int thread) {
      if (thread < 2 * kPanelRows) add_up(block, thread, shared_sums);
    });
  }

 private:
  static constexpr int kSlots = kThreads / kStripsPerPanel;  // groups at once
  // Words between the sums of strips and of slots: a warp's neighbours write to different banks.
  static constexpr int kStripPitch = 2 * kStripRows + 1;
  static constexpr int kSlotPitch = kStripsPerPanel * kStripPitch + 1;
  static constexpr Index kSumBytes = kSlots * kSlotPitch * 4;

  struct Sums {
    Complex row[kStripRows] = {};
  };

  template <class Block>
  LLAVA_FA_KERNEL void multiply(const Block& block, const Table& table, int thread,
                                Sums& sums) const {
    const Index panel = block.index(0) % panels(), part = block.index(0) / panels();
    const Index first_row = panel * kPanelRows + thread % kStripsPerPanel * kStripRows;
    if (first_row >= matrix.rows) return;
    const Index first = part * kColumnsPerPart;
    const Index end = first + kColumnsPerPart < pitch ? first + kColumnsPerPart : pitch;
    const Complex* x = spectrum + block.index(1) * pitch;
    LLAVA_FA_KEEP_LOOP
    for (Index column = first + thread / kStripsPerPanel * kColumns; column < end;
         column += kSlots * kColumns) {
      add_group(table, first_row, column, x + column, thread, sums);
    }
  }

  LLAVA_FA_KERNEL void add_group(const Table& table, Index first_row, Index column,
                                 const Complex* x, int lane, Sums& sums) const {
    const Index first_byte = column / kColumns * kBytes;
    StripBytes bytes[kBytes];
    LLAVA_FA_UNROLL
    for (int b = 0; b < kBytes; ++b) bytes[b] = load_strip(matrix, first_row, first_byte + b);
    std::uint32_t states[kColumns] = {};
    if constexpr (Table::kTrellis) {
      states_before<code_bits, kBytes>(matrix, state_rows, first_row, first_byte, states);
    }
    LLAVA_FA_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const Complex entry = x[c];
      LLAVA_FA_UNROLL
      for (int r = 0; r < kStripRows; ++r) {
        const std::uint32_t code = code_of<code_bits>(bytes, r, c);
        if constexpr (Table::kTrellis) {
          states[c] = next_state(states[c], code, code_bits);
          add_product(table.at(states[c], lane), entry, sums.row[r]);
        } else {
          add_product(table.at(code, lane), entry, sums.row[r]);
        }
      }
    }
  }

  LLAVA_FA_KERNEL static void put_sums(const Sums& sums, int thread, float* shared) {
    float* own =
        shared + thread / kStripsPerPanel * kSlotPitch + thread % kStripsPerPanel * kStripPitch;
    LLAVA_FA_UNROLL
    for (int r = 0; r < kStripRows; ++r) {
      own[2 * r] = sums.row[r].real;
      own[2 * r + 1] = sums.row[r].imag;
    }
  }

  // One part, real or imaginary, of one row.
  template <class Block>
  LLAVA_FA_KERNEL void add_up(const Block& block, int thread, const float* shared) const {
    const int strip = thread / (2 * kStripRows), place = thread % (2 * kStripRows);
    const Index panel = block.index(0) % panels(), part = block.index(0) / panels();
    const Index row = panel * kPanelRows + strip * kStripRows + place / 2;
    if (row >= matrix.rows) return;
    float total = 0;
    for (int slot = 0; slot < kSlots; ++slot) {
      total += shared[slot * kSlotPitch + strip * kStripPitch + place];
    }
    const Index line = (part * tokens + block.index(1)) * 2 + place % 2;
    parts[line * matrix.rows + row] = matrix.row_scale[row] * total;
  }
};

}  // namespace llava_fa::cuda

// Decoded panels times activations on tensor cores: float16 factors, float32 sums. Twin of
// multiply_panel in ../cpu/linalg.cpp.
//
// Grid (row tiles, token tiles); a block computes 128 rows for 64 tokens with four warps, each 64
// rows for 32 tokens in tiles of 16 x 16 x 16.
// 1. Both factors' tiles of the next step are copied to shared memory while the present one's are
//    multiplied; one barrier per step.
// 2. With two planes per factor, high · high + high · low + low · high: what is left out is 2^-22.
// 3. The sums go through shared memory, are scaled by token and row, and written along rows.
//
// Besides what every kernel uses, the Block has LeftTile, RightTile and SumTile, tiles that a warp
// holds; load(pitch, from, tile), multiply_add(left, right, sum), store(sum, to, pitch);
// copy16(to, from), 16 bytes to shared memory, which are there after the phase.
#pragma once

#include "folding.hpp"

namespace llava_fa::cuda {

template <int planes>
struct PanelProduct {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kRows = 128, kTokens = 64;
  static constexpr int kTile = 16;

  const Half* panel;        // (planes, 2 count, width)
  const Half* activations;  // (planes, tokens, width)
  Index count;              // complex rows of the panel
  Index tokens;
  Index width;             // 2 half_pitch
  const float* row_scale;  // (count)
  const float* unit;       // (tokens)
  float* output;           // (tokens, 2, rows), from the panel's first row on
  Index rows;

  static constexpr Index shared_bytes() {
    constexpr Index kOperands = 2 * kBufferHalves * 2, kSums = kTokens * kSumPitch * 4;
    return kOperands > kSums ? kOperands : kSums;
  }

  template <class Block>
  LLAVA_FA_KERNEL void operator()(Block& block) const {
    Half* const shared = block.template shared<Half>();
    typename Block::template PerWarp<Sums<Block>> sums;
    block.phase([&](int thread) { copy_step(block, thread, 0, shared); });
    for (Index step = 0; step < width / kStep; ++step) {
      const Half* present = shared + step % 2 * kBufferHalves;
      Half* const next = shared + (step + 1) % 2 * kBufferHalves;
      block.start([&](int thread) {
        if (step + 1 < width / kStep) copy_step(block, thread, step + 1, next);
      });
      block.warps([&](int warp) { multiply(block, warp, present, sums[warp]); });
    }
    float* const shared_sums = block.template shared<float>();
    block.warps([&](int warp) { put_sums(block, warp, sums[warp], shared_sums); });
    block.phase([&](int thread) { write(block, thread, shared_sums); });
  }

 private:
  static constexpr int kStep = 32 / planes;  // columns at once
  static constexpr int kPitch = kStep + 8;   // in shared memory, against bank conflicts
  static constexpr int kPlaneHalves = (kRows + kTokens) * kPitch;
  static constexpr int kBufferHalves = planes * kPlaneHalves;
  static constexpr int kSumPitch = kRows + 4;
  static constexpr int kWarpRows = 64, kWarpTokens = 32;
  static constexpr int kRowTiles = kWarpRows / kTile, kTokenTiles = kWarpTokens / kTile;
  static_assert(kHalfPitchStep % kStep == 0);

  template <class Block>
  struct Sums {
    typename Block::SumTile tile[kRowTiles][kTokenTiles];
  };

  LLAVA_FA_KERNEL static Index at_most(Index i, Index last) { return i < last ? i : last; }

  // Rows and tokens beyond the last repeat it; their results are not written.
  template <class Block>
  LLAVA_FA_KERNEL void copy_step(Block& block, int thread, Index step, Half* buffer) const {
    constexpr int kPerRow = kStep / 8;  // 16-byte pieces
    for (int i = thread; i < planes * (kRows + kTokens) * kPerRow; i += kThreads) {
      const int piece = i % kPerRow, line = i / kPerRow % (kRows + kTokens);
      const int plane = i / (kPerRow * (kRows + kTokens));
      const Index column = step * kStep + piece * 8;
      const Half* from;
      if (line < kRows) {
        const Index row = at_most(block.index(0) * kRows + line, 2 * count - 1);
        from = panel + (plane * 2 * count + row) * width + column;
      } else {
        const Index token = at_most(block.index(1) * kTokens + line - kRows, tokens - 1);
        from = activations + (plane * tokens + token) * width + column;
      }
      block.copy16(buffer + plane * kPlaneHalves + line * kPitch + piece * 8, from);
    }
  }

  template <class Block>
  LLAVA_FA_KERNEL void multiply(Block& block, int warp, const Half* buffer,
                                Sums<Block>& sums) const {
    const Half* rows_at = buffer + warp % 2 * kWarpRows * kPitch;
    const Half* tokens_at = buffer + (kRows + warp / 2 * kWarpTokens) * kPitch;
    for (int k = 0; k < kStep; k += kTile) {
      typename Block::RightTile right[planes][kTokenTiles];
      LLAVA_FA_UNROLL
      for (int i = 0; i < planes * kTokenTiles; ++i) {
        const int plane = i / kTokenTiles, j = i % kTokenTiles;
        block.load(kPitch, tokens_at + plane * kPlaneHalves + j * kTile * kPitch + k,
                   right[plane][j]);
      }
      LLAVA_FA_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        add_row_tile(block, rows_at + i * kTile * kPitch + k, right, sums.tile[i]);
      }
    }
  }

  template <class Block>
  LLAVA_FA_KERNEL static void add_row_tile(
      Block& block, const Half* from, const typename Block::RightTile (&right)[planes][kTokenTiles],
      typename Block::SumTile (&sums)[kTokenTiles]) {
    LLAVA_FA_UNROLL
    for (int plane = 0; plane < planes; ++plane) {
      typename Block::LeftTile left;
      block.load(kPitch, from + plane * kPlaneHalves, left);
      LLAVA_FA_UNROLL
      for (int other = 0; other < planes - plane; ++other) {
        LLAVA_FA_UNROLL
        for (int j = 0; j < kTokenTiles; ++j) block.multiply_add(left, right[other][j], sums[j]);
      }
    }
  }

  // Sums by token, rows side by side.
  template <class Block>
  LLAVA_FA_KERNEL static void put_sums(Block& block, int warp, const Sums<Block>& sums,
                                       float* shared) {
    LLAVA_FA_UNROLL
    for (int i = 0; i < kRowTiles * kTokenTiles; ++i) {
      const int row = warp % 2 * kWarpRows + i / kTokenTiles * kTile;
      const int token = warp / 2 * kWarpTokens + i % kTokenTiles * kTile;
      block.store(sums.tile[i / kTokenTiles][i % kTokenTiles], shared + token * kSumPitch + row,
                  kSumPitch);
    }
  }

  template <class Block>
  LLAVA_FA_KERNEL void write(const Block& block, int thread, const float* shared) const {
    const Index line = block.index(0) * kRows + thread;  // a row of the panel per thread
    static_assert(kRows == kThreads);
    if (line >= 2 * count) return;
    const Index part = line / count, row = line % count;
    for (int t = 0; t < kTokens; ++t) {
      const Index token = block.index(1) * kTokens + t;
      if (token >= tokens) return;
      output[(2 * token + part) * rows + row] =
          row_scale[row] * (unit[token] * shared[t * kSumPitch + thread]);
    }
  }
};

}  // namespace llava_fa::cuda

// Points of codes in kernels, looked up in shared memory. Twin of ../cpu/points.hpp.
//
// Every entry of a table is stored several times side by side, so that lanes that look up different
// entries read different banks: lane i reads copy i modulo the number of copies.
#pragma once

#include <cstdint>

#include "complex.hpp"
#include "host_device.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa::cuda {

// Points of a constellation: an entry per code, 8 bytes, so that 16 copies fill the banks.
class ConstellationTable {
 public:
  static constexpr bool kTrellis = false;
  static constexpr int kBytes = 32 << 10;

  // points: 2^code_bits Complex in device memory.
  LLAVA_FA_SHARED ConstellationTable(void* shared, const void* points, int code_bits)
      : table_(static_cast<Complex*>(shared)),
        points_(static_cast<const Complex*>(points)),
        count_(1 << code_bits),
        copy_bits_(code_bits <= 8 ? 4 : 12 - code_bits) {}

  LLAVA_FA_SHARED void fill(int thread, int threads) const {
    for (int i = thread; i < count_ << copy_bits_; i += threads) {
      table_[i] = points_[i >> copy_bits_];
    }
  }

  LLAVA_FA_SHARED Complex at(std::uint32_t code, int lane) const {
    return table_[(code << copy_bits_) + (lane & ((1 << copy_bits_) - 1))];
  }

 private:
  Complex* table_;
  const Complex* points_;
  int count_;
  int copy_bits_;
};

// Points of the trellis' states, computed as docs/format.md defines them: the index of a state is
// the exclusive or of an entry for each of its bytes, and each byte of the index picks the level of
// one part. Three tables of 256 words, whatever the number of states.
class TrellisTable {
 public:
  static constexpr bool kTrellis = true;
  static constexpr int kCopyBits = 4;
  static constexpr int kWords = 3 * 256;
  static constexpr int kBytes = (kWords << kCopyBits) * 4;

  // words (3, 256) in device memory: index of a state's low byte, of its high byte, and levels.
  LLAVA_FA_SHARED TrellisTable(void* shared, const void* words, int /*code_bits*/)
      : table_(static_cast<Word*>(shared)), words_(static_cast<const Word*>(words)) {}

  LLAVA_FA_SHARED void fill(int thread, int threads) const {
    for (int i = thread; i < kWords << kCopyBits; i += threads) table_[i] = words_[i >> kCopyBits];
  }

  LLAVA_FA_SHARED Complex at(std::uint32_t state, int lane) const {
    const std::uint32_t index =
        word(state & 255, lane).index ^ word(256 + (state >> 8), lane).index;
    return {word(512 + (index & 255), lane).level, word(512 + (index >> 8), lane).level};
  }

  union Word {
    std::uint32_t index;
    float level;
  };

 private:
  LLAVA_FA_SHARED Word word(std::uint32_t i, int lane) const {
    return table_[(i << kCopyBits) + (lane & ((1 << kCopyBits) - 1))];
  }

  Word* table_;
  const Word* words_;
};

}  // namespace llava_fa::cuda

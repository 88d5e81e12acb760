// Codes of packed rows as numbers, several at a time where the processor can.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../bit_packing.hpp"
#include "../code_panels.hpp"
#include "llava_fa/types.hpp"
#include "registers.hpp"

namespace llava_fa::cpu {

#if defined(LLAVA_FA_HAS_REGISTERS)

// Codes of up to eight bits to bytes that hold one each, by moving the upper half of ever smaller
// groups of codes to its place.
class ByteWidening {
 public:
  explicit ByteWidening(int code_bits) {
    for (int group = 4; group >= 1; group /= 2) {
      const std::uint64_t codes = (std::uint64_t{1} << (group * code_bits)) - 1;
      std::uint64_t kept = 0;
      for (int place = 0; place < 64; place += 2 * group * 8) kept |= codes << place;
      steps_[count_++] = {all64(kept), all64(kept << (group * code_bits)), group * (8 - code_bits)};
    }
  }

  Register widen(Register words) const {
    for (int i = 0; i < count_; ++i) {
      words = (words & steps_[i].kept) | shift_left64(words & steps_[i].moved, steps_[i].shift);
    }
    return words;
  }

 private:
  struct Step {
    Register kept, moved;
    int shift;
  };

  int count_ = 0;
  Step steps_[3] = {};
};

#endif

// Does what unpack_row does, for many rows of the same kind.
class RowUnpacker {
 public:
  RowUnpacker(Index cols, int code_bits)
      : cols_(cols),
        code_bits_(code_bits),
        row_bytes_(packed_row_bytes(cols, code_bits))
#if defined(LLAVA_FA_HAS_REGISTERS)
        ,
        widening_(std::min(code_bits, 8))
#endif
  {
  }

  Index row_bytes() const { return row_bytes_; }

  void unpack(const std::uint8_t* packed_row, std::uint16_t* codes) const {
    Index l = 0;
#if defined(LLAVA_FA_HAS_REGISTERS)
    constexpr Index kAtOnce = kVectorRows, kWords = kAtOnce / 8;
    const Index last_word = (kWords - 1) * code_bits_ + 8;  // where reading all words ends
    for (; code_bits_ <= 8 && l + kAtOnce <= cols_ && l / 8 * code_bits_ + last_word <= row_bytes_;
         l += kAtOnce) {
      std::uint64_t words[kWords];
      for (Index word = 0; word < kWords; ++word) {
        std::memcpy(words + word, packed_row + (l / 8 + word) * code_bits_, sizeof(words[0]));
      }
      store_widened8(codes + l, widening_.widen(load_bytes(words)));
    }
#endif
    unpack_row(packed_row + l / 8 * code_bits_, cols_ - l, code_bits_, codes + l);
  }

 private:
  Index cols_;
  int code_bits_;
  Index row_bytes_;
#if defined(LLAVA_FA_HAS_REGISTERS)
  ByteWidening widening_;
#endif
};

// Codes of the rows of a packed matrix, most of them in order.
class RowCodesReader {
 public:
  RowCodesReader(const std::uint8_t* packed, Index rows, Index cols, int code_bits)
      : unpacker_(cols, code_bits),
        reader_(packed, rows, unpacker_.row_bytes()),
        codes_(static_cast<std::size_t>(cols)) {}

  // Valid until the next call.
  const std::uint16_t* row(Index k) {
    unpacker_.unpack(reader_.row(k), codes_.data());
    return codes_.data();
  }

 private:
  RowUnpacker unpacker_;
  RowReader reader_;
  std::vector<std::uint16_t> codes_;
};

}  // namespace llava_fa::cpu

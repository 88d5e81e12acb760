// Codes of packed rows as numbers, several at a time where the processor can.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "../bit_packing.hpp"
#include "../code_panels.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa::cpu {

#if defined(__AVX2__)

// Codes of `code_bits` bits to the fields of 4 or 8 bits that hold one each, by moving the upper
// half of ever smaller groups of codes to its place.
class FieldWidening {
 public:
  FieldWidening(int code_bits, int field_bits) : word_bytes_(8 * code_bits / field_bits) {
    for (int group = 32 / field_bits; group >= 1; group /= 2) {
      const std::uint64_t codes = (std::uint64_t{1} << (group * code_bits)) - 1;
      std::uint64_t kept = 0;
      for (int place = 0; place < 64; place += 2 * group * field_bits) kept |= codes << place;
      steps_[count_++] = {_mm256_set1_epi64x(static_cast<long long>(kept)),
                          _mm256_set1_epi64x(static_cast<long long>(kept << (group * code_bits))),
                          _mm_cvtsi32_si128(group * (field_bits - code_bits))};
    }
  }

  // Bytes of codes that become eight bytes of fields.
  Index word_bytes() const { return word_bytes_; }

  __m256i widen(__m256i words) const {
    for (int i = 0; i < count_; ++i) {
      const __m256i moved =
          _mm256_sll_epi64(_mm256_and_si256(words, steps_[i].moved), steps_[i].shift);
      words = _mm256_or_si256(_mm256_and_si256(words, steps_[i].kept), moved);
    }
    return words;
  }

 private:
  struct Step {
    __m256i kept, moved;
    __m128i shift;
  };

  Index word_bytes_;
  int count_ = 0;
  Step steps_[4] = {};
};

#endif

// Does what unpack_row does, for many rows of the same kind.
class RowUnpacker {
 public:
  RowUnpacker(Index cols, int code_bits)
      : cols_(cols),
        code_bits_(code_bits),
        row_bytes_(packed_row_bytes(cols, code_bits))
#if defined(__AVX2__)
        ,
        widening_(code_bits <= 8 ? code_bits : 8, 8)
#endif
  {
  }

  Index row_bytes() const { return row_bytes_; }

  void unpack(const std::uint8_t* packed_row, std::uint16_t* codes) const {
    Index l = 0;
#if defined(__AVX2__)
    constexpr Index kAtOnce = 32;
    const Index last_word = 3 * code_bits_ + 8;  // where reading four words ends
    for (; code_bits_ <= 8 && l + kAtOnce <= cols_ && l / 8 * code_bits_ + last_word <= row_bytes_;
         l += kAtOnce) {
      alignas(32) std::uint64_t words[4];
      for (Index word = 0; word < 4; ++word) {
        std::memcpy(words + word, packed_row + (l / 8 + word) * code_bits_, sizeof(words[0]));
      }
      const __m256i bytes =
          widening_.widen(_mm256_load_si256(reinterpret_cast<const __m256i*>(words)));
      auto* out = reinterpret_cast<__m256i*>(codes + l);
      _mm256_storeu_si256(out, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes)));
      _mm256_storeu_si256(out + 1, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1)));
    }
#endif
    unpack_row(packed_row + l / 8 * code_bits_, cols_ - l, code_bits_, codes + l);
  }

 private:
  Index cols_;
  int code_bits_;
  Index row_bytes_;
#if defined(__AVX2__)
  FieldWidening widening_;
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

// Little-endian bit streams of fixed-width codes, for one row (docs/format.md, "Codes").
#pragma once

#include <cstdint>
#include <cstring>

#include "llava_fa/types.hpp"

namespace llava_fa {

// `packed` receives ceil(count * bits / 8) bytes; the last byte's padding bits are zero.
inline void pack_row(const std::uint16_t* codes, Index count, int bits, std::uint8_t* packed) {
  std::uint64_t pending = 0;
  int filled = 0;
  for (Index l = 0; l < count; ++l) {
    pending |= static_cast<std::uint64_t>(codes[l]) << filled;
    for (filled += bits; filled >= 8; filled -= 8, pending >>= 8) {
      *packed++ = static_cast<std::uint8_t>(pending);
    }
  }
  if (filled > 0) *packed = static_cast<std::uint8_t>(pending);
}

// Eight codes fill `bits` bytes, so that for bits <= 8 they come out of one 64-bit word by shifts
// that do not depend on each other; the rest of the row goes byte by byte.
inline void unpack_row(const std::uint8_t* packed, Index count, int bits, std::uint16_t* codes) {
  const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
  Index l = 0;
  if (bits <= 8) {
    for (; (count - l) * bits >= 64; l += 8, packed += bits) {  // no word reaches beyond the row
      std::uint64_t word;
      std::memcpy(&word, packed, sizeof(word));
      for (int i = 0; i < 8; ++i) {
        codes[l + i] = static_cast<std::uint16_t>((word >> (i * bits)) & mask);
      }
    }
  }
  std::uint64_t pending = 0;
  int filled = 0;
  for (; l < count; ++l) {
    while (filled < bits) {
      pending |= static_cast<std::uint64_t>(*packed++) << filled;
      filled += 8;
    }
    codes[l] = static_cast<std::uint16_t>(pending & mask);
    pending >>= bits;
    filled -= bits;
  }
}

}  // namespace llava_fa

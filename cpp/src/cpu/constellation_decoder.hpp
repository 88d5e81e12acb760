// Decodes blocks (block.hpp) of constellations: points of up to six bits are looked up whole, those
// of rings by their radii and phases.
#pragma once

#include "registers.hpp"

#if defined(LLAVA_FA_HAS_REGISTERS)

#include <algorithm>
#include <cstring>
#include <memory>

#include "../bit_packing.hpp"
#include "backend.hpp"
#include "block.hpp"
#include "code_tiles.hpp"
#include "float_tables.hpp"
#include "ring_codes.hpp"

namespace llava_fa::cpu {

// Points of codes of kBits bits, which 16, 32 or 64 values hold.
template <int kBits>
class TablePoints {
 public:
  static constexpr int kCodeBits = kBits;

  explicit TablePoints(const Constellation& points) {
    float real[kTables * kTableSize] = {}, imag[kTables * kTableSize] = {};
    std::copy_n(points.point_real.data(), Index{1} << kBits, real);
    std::copy_n(points.point_imag.data(), Index{1} << kBits, imag);
    real_.fill(real);
    imag_.fill(imag);
  }

  [[gnu::always_inline]] RowPoints look_up(Register codes) const {
    Register index[kTables];
    for (Index table = 0; table < kTables; ++table) {
      index[table] = kTables == 1 ? codes : table_index(codes, table);
    }
    RowPoints points;
    real_.look_up(index, all8(0), points.real);
    imag_.look_up(index, all8(0), points.imag);
    return points;
  }

 private:
  static constexpr Index kTables = kBits <= 4 ? 1 : Index{1} << (kBits - 4);
  FloatTables<kTables> real_, imag_;
};

class RingPoints {
 public:
  static constexpr int kCodeBits = 8;

  explicit RingPoints(const Constellation& points) {
    const ProductTable units = unit_points();
    radii_.fill(ring_radii(points).data());
    real_.fill(units.real);
    imag_.fill(units.imag);
  }

  [[gnu::always_inline]] RowPoints look_up(Register bytes) const {
    const RingCodes code = split_codes(bytes);
    Floats radii[4];
    radii_.look_up({code.ring}, code.negative & all8(-128), radii);
    RowPoints points;
    real_.look_up({code.angle}, all8(0), points.real);
    imag_.look_up({code.angle}, all8(0), points.imag);
    for (int part = 0; part < 4; ++part) {
      points.real[part] = points.real[part] * radii[part];
      points.imag[part] = points.imag[part] * radii[part];
    }
    return points;
  }

 private:
  FloatTables<1> radii_, real_, imag_;
};

// The bytes of a register of rows of a whole panel.
struct PanelBytes {
  const std::uint8_t* codes;

  [[gnu::always_inline]] Register operator[](Index byte) const {
    return load_bytes(codes + byte * kPanelRows);
  }
};

template <class Points>
class ConstellationDecoder {
 public:
  // Holds the codes of a panel of fewer rows, as far apart as those of whole ones.
  struct Scratch {
    std::unique_ptr<std::uint8_t[]> codes;
  };

  explicit ConstellationDecoder(const CodedMatrix& matrix)
      : matrix_(matrix),
        row_bytes_(packed_row_bytes(matrix.cols, kBits)),
        points_(*matrix.constellation) {}

  const RowOrder& order() const { return kFloatOrder; }
  float unit() const { return 1.0f; }

  void decode(Index panel, Index rows, Index first_slot, Index slots, Scratch& scratch,
              Block& block) const {
    const std::uint8_t* codes = matrix_.packed + panel * row_bytes_;
    if (rows < kPanelRows) {
      if (first_slot == 0) widen_panel(codes, rows, scratch);
      codes = scratch.codes.get();
    }
    const Index n = matrix_.cols, pairs = column_pairs(n);
    for (Index row = 0; row < rows; row += kVectorRows) {
      const auto points_of = [&](Index column) __attribute__((always_inline)) {
        return points_.look_up(bit_field<kBits>(PanelBytes{codes + row}, column));
      };
      const Index pairs_end = std::min(slots, pairs - first_slot);
      for (Index i = 0; i < pairs_end; ++i) {
        const Index column = first_slot + i + 1;
        block.store_pair(i, row, points_of(column), points_of(n - column));
      }
      if (pairs_end < slots) {
        block.store_own_images(pairs_end, row, points_of(0), points_of(n / 2));
      }
    }
  }

 private:
  static constexpr int kBits = Points::kCodeBits;

  void widen_panel(const std::uint8_t* codes, Index rows, Scratch& scratch) const {
    const auto bytes = static_cast<std::size_t>(row_bytes_ * kPanelRows);
    if (scratch.codes == nullptr) scratch.codes = std::make_unique<std::uint8_t[]>(bytes);
    for (Index byte = 0; byte < row_bytes_; ++byte) {
      std::memcpy(scratch.codes.get() + byte * kPanelRows, codes + byte * rows,
                  static_cast<std::size_t>(rows));
    }
  }

  const CodedMatrix& matrix_;
  Index row_bytes_;
  Points points_;
};

}  // namespace llava_fa::cpu

#endif  // LLAVA_FA_HAS_REGISTERS

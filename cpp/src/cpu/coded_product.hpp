// Products of coded rows with one complex vector, y[k] = row_scale[k] · sum_l point(k, l) · x[l]:
// one kernel per way in which codes become points.
#pragma once

#include <cstdint>

#include "../half_float.hpp"
#include "backend.hpp"
#include "llava_fa/types.hpp"
#include "registers.hpp"

namespace llava_fa::cpu {

// What columns l and n - l are multiplied with, of a half spectrum that has both entries' energy.
inline constexpr float kHalfSqrt = 0.70710678118654752440f;

// One complex vector of length matrix.cols, in planes.
struct VectorView {
  const float* real;
  const float* imag;
};

struct VectorSpan {
  float* real;
  float* imag;
};

// Point products (point_product.cpp): every point is looked up and multiplied in float32. Any code.
void multiply_points(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y);

// The same for rows from first_row on, which are few, on the calling thread.
void multiply_point_rows(const CodedMatrix& matrix, VectorView x, Index first_row, VectorSpan y);

#if defined(LLAVA_FA_HAS_REGISTERS)

// Table products (table_product.cpp): codes of up to six bits. Products of all points with an entry
// of x are tabulated in fixed point and looked up in registers. Relative error about 1e-6, or 2e-4
// at half precision.
bool table_products_apply(const CodedMatrix& matrix);
void multiply_by_tables(const CodedMatrix& matrix, VectorView x, Precision precision, int threads,
                        VectorSpan y);

// Turn products (turn_product.cpp): 64 points that are sixteen and their quarter turns. Products of
// the sixteen with an entry of x are tabulated and turned. Relative error about 4e-4.
bool turn_products_apply(const CodedMatrix& matrix);
void multiply_turns(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y);

// Ring products (ring_product.cpp): 16 rings of 16 phases. Products of all phases with an entry of
// x are tabulated and multiplied by the radius, in float32 or, at half precision, in fixed point.
// Relative error about 1e-6, or 5e-4.
bool ring_products_apply(const CodedMatrix& matrix);
void multiply_rings(const CodedMatrix& matrix, VectorView x, Precision precision, int threads,
                    VectorSpan y);

// Trellis products (trellis_product.cpp): states of many rows become points by look-ups in
// registers, which are multiplied with x in float32 or, at half precision, as integers. Expects
// that x is a spectrum of real values: x[n - l] is the conjugate of x[l]. Relative error about
// 1e-6, or 4e-4.
void multiply_trellis(const CodedMatrix& matrix, VectorView x, Precision precision, int threads,
                      VectorSpan y);

// Block products with many vectors (block_product.cpp), for which columns l and n - l meet one
// entry of a half spectrum. Relative error about 1e-6, or 2e-3 where numbers of bfloat16 are
// asked for and the processor multiplies them.
bool blocks_apply(const CodedMatrix& matrix);
void multiply_blocks(const CodedMatrix& matrix, const ComplexMatrix& half, Precision precision,
                     int threads, ComplexMatrix& y);

#endif

}  // namespace llava_fa::cpu

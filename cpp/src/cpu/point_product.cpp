// Point products: every code's point is looked up and multiplied with x in float32, row by row.
#include "coded_product.hpp"
#include "parallel.hpp"
#include "points.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRowsPerItem = 32;
constexpr double kNanosecondsPerEntry = 0.6;

struct Complex {
  float real;
  float imag;
};

#if defined(LLAVA_FA_HAS_REGISTERS)

// x with every part twice, so that it multiplies real and imaginary parts of points side by side:
// (re, re, re, re, ...) and (im, im, im, im, ...).
struct Operand {
  explicit Operand(const CodedMatrix& matrix, VectorView x)
      : real(2 * matrix.cols), imag(2 * matrix.cols), plain(x) {
    for (Index l = 0; l < matrix.cols; ++l) {
      real.data()[2 * l] = real.data()[2 * l + 1] = x.real[l];
      imag.data()[2 * l] = imag.data()[2 * l + 1] = x.imag[l];
    }
  }

  FloatBuffer real, imag;
  VectorView plain;
};

inline Complex multiply_row(const std::uint16_t* index, Index count, const float* pairs,
                            const Operand& x) {
  Floats by_real = all_floats(0.0f), by_imag = all_floats(0.0f);
  Index l = 0;
  for (; l + kPointsAtOnce <= count; l += kPointsAtOnce) {
    const Floats points = load_pairs(pairs, index + l);
    by_real = multiply_add(points, load_floats(x.real.data() + 2 * l), by_real);
    by_imag = multiply_add(points, load_floats(x.imag.data() + 2 * l), by_imag);
  }
  alignas(64) float r[kFloats], i[kFloats];
  store_floats(r, by_real);
  store_floats(i, by_imag);
  Complex sum = {};
  for (Index pair = 0; pair < kFloats; pair += 2) {
    sum.real += r[pair] - i[pair + 1];
    sum.imag += r[pair + 1] + i[pair];
  }
  for (; l < count; ++l) {
    const float *point = pairs + 2 * index[l], re = x.plain.real[l], im = x.plain.imag[l];
    sum.real += point[0] * re - point[1] * im;
    sum.imag += point[0] * im + point[1] * re;
  }
  return sum;
}

#else

struct Operand {
  Operand(const CodedMatrix&, VectorView x) : plain(x) {}
  VectorView plain;
};

inline Complex multiply_row(const std::uint16_t* index, Index count, const float* pairs,
                            const Operand& x) {
  constexpr Index kSums = 8;  // independent sums, for accuracy and for the compiler
  Complex sums[kSums] = {};
  for (Index l = 0; l < count; ++l) {
    const float *point = pairs + 2 * index[l], re = x.plain.real[l], im = x.plain.imag[l];
    sums[l % kSums].real += point[0] * re - point[1] * im;
    sums[l % kSums].imag += point[0] * im + point[1] * re;
  }
  Complex total = {};
  for (const Complex& sum : sums) {
    total.real += sum.real;
    total.imag += sum.imag;
  }
  return total;
}

#endif

// Rows [begin, end).
void multiply_rows(const CodedMatrix& matrix, PointIndexes& indexes, const Operand& x, Index begin,
                   Index end, VectorSpan y) {
  const float* pairs = point_pairs(matrix);
  for (Index k = begin; k < end; ++k) {
    const Complex sum = multiply_row(indexes.of_row(k), matrix.cols, pairs, x);
    const float scale = half_to_float(matrix.row_scale[k]);
    y.real[k] = scale * sum.real;
    y.imag[k] = scale * sum.imag;
  }
}

}  // namespace

void multiply_points(const CodedMatrix& matrix, VectorView x, int threads, VectorSpan y) {
  const Operand operand(matrix, x);
  const double entries = static_cast<double>(matrix.rows) * static_cast<double>(matrix.cols);
  parallel_for(
      ceil_div(matrix.rows, kRowsPerItem), step_threads(threads, kNanosecondsPerEntry * entries),
      [&] { return PointIndexes(matrix); },
      [&](Index item, PointIndexes& indexes) {
        const Index begin = item * kRowsPerItem;
        multiply_rows(matrix, indexes, operand, begin, std::min(matrix.rows, begin + kRowsPerItem),
                      y);
      });
}

void multiply_point_rows(const CodedMatrix& matrix, VectorView x, Index first_row, VectorSpan y) {
  if (first_row == matrix.rows) return;
  PointIndexes indexes(matrix);
  multiply_rows(matrix, indexes, Operand(matrix, x), first_row, matrix.rows, y);
}

}  // namespace llava_fa::cpu

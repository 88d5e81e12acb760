// Packed product: activations to their half spectrum, products with the codes or with decoded
// panels, and back.
#include "llava_fa/matmul.hpp"

#include <algorithm>
#include <vector>

#include "backend.hpp"
#include "checks.hpp"
#include "llava_fa/runtime.hpp"
#include "llava_fa/spectrum.hpp"

namespace llava_fa {
namespace {

// out (2 rows, batch) = rows of a complex (rows, n) matrix, folded, times the half spectrum of the
// activations, its planes stacked: real parts of the result first, then imaginary parts.
FloatBuffer multiply_folded(const float* real, const float* imag, Index rows, Index n,
                            const ComplexMatrix& half) {
  const Backend& backend = cpu_backend();
  const Index width = 2 * half.rows(), batch = half.cols();
  FloatBuffer panel(2 * rows * width), out(2 * rows * batch);
  backend.fold_rows(real, imag, rows, n, num_threads(), panel.data());
  backend.multiply_panel(panel.data(), 2 * rows, width, half.real(), batch, num_threads(),
                         out.data());
  return out;
}

CodedMatrix coded_matrix(const PackedMatrix& matrix) {
  const MatrixSpec& spec = matrix.spec();
  CodedMatrix coded;
  coded.packed = matrix.codes().data();
  coded.row_scale = matrix.row_scale().data();
  coded.rows = half_rows(spec.rows);
  coded.cols = spec.cols;
  if (spec.codec == Codec::trellis) {
    const int state_bits = effective_state_bits(coded.rows, spec.code_bits, spec.state_bits);
    coded.trellis = &trellis(spec.code_bits, state_bits);
  } else {
    coded.constellation = &constellation(spec.codec, spec.code_bits);
  }
  return coded;
}

// out[l] = factor · values[l · stride] and out[n - l] = mirrored · values[l · stride], 0 < l < n/2.
void spread(const float* __restrict values, Index stride, Index n, float factor, float mirrored,
            float* __restrict out) {
  for (Index l = 1; 2 * l < n; ++l) out[l] = factor * values[l * stride];
  for (Index l = 1; 2 * l < n; ++l) out[n - l] = mirrored * values[l * stride];
}

// x̃ = conj(F x) of one activation, all n columns, from column b of its half spectrum.
ComplexMatrix full_spectrum(const ComplexMatrix& half, Index n, Index b) {
  constexpr float kHalfSqrt = 0.70710678118654752440f;  // undoes the Parseval weight
  ComplexMatrix full(1, n);
  const Index stride = half.cols();
  spread(half.real() + b, stride, n, kHalfSqrt, kHalfSqrt, full.real());
  spread(half.imag() + b, stride, n, -kHalfSqrt, kHalfSqrt, full.imag());
  for (const Index l : {Index{0}, n / 2}) {
    if (2 * l % n != 0) continue;
    full.real()[l] = half.real()[l * stride + b];
    full.imag()[l] = -half.imag()[l * stride + b];
  }
  return full;
}

// One activation after another: nothing of the matrix is decoded to memory.
void multiply_vectors(const CodedMatrix& coded, const ComplexMatrix& half, Precision precision,
                      ComplexMatrix& y) {
  const Index batch = y.cols();
  FloatBuffer part(2 * y.rows());
  for (Index b = 0; b < batch; ++b) {
    const ComplexMatrix x = full_spectrum(half, coded.cols, b);
    float *real = part.data(), *imag = part.data() + y.rows();
    cpu_backend().multiply_vector(coded, x.real(), x.imag(), precision, num_threads(), real, imag);
    for (Index k = 0; k < y.rows(); ++k) {
      y.real()[k * batch + b] = real[k];
      y.imag()[k * batch + b] = imag[k];
    }
  }
}

// y += L1 (L2 x̃): the right factor in the real basis, the left one in complex arithmetic.
void add_low_rank(const PackedMatrix& matrix, const ComplexMatrix& half, ComplexMatrix& y) {
  const Index rank = matrix.spec().rank, batch = y.cols();
  const ComplexMatrix right = matrix.low_rank_right();
  const FloatBuffer part =
      multiply_folded(right.real(), right.imag(), rank, matrix.spec().cols, half);
  ComplexMatrix minus_inner(rank, batch);
  for (Index i = 0; i < 2 * rank * batch; ++i) minus_inner.real()[i] = -part.data()[i];
  cpu_backend().subtract_low_rank(y, matrix.low_rank_left(), minus_inner, num_threads(), y);
}

void multiply_at_once(const PackedMatrix& matrix, const MatrixView& activations, float* output,
                      Precision precision) {
  const MatrixSpec& spec = matrix.spec();
  const Index batch = activations.rows;
  FloatBuffer channels(std::max(spec.cols, spec.rows) * batch);  // of the inputs, then the outputs
  cpu_backend().transpose(activations, nullptr, matrix.input_multiplier().data(), num_threads(),
                          channels.data());
  const ComplexMatrix half = half_spectrum_over_rows({channels.data(), spec.cols, batch, batch});

  ComplexMatrix y(half_rows(spec.rows), batch);
  const CodedMatrix coded = coded_matrix(matrix);
  if (batch <= cpu_backend().most_vectors(coded, precision)) {
    multiply_vectors(coded, half, precision, y);
  } else {
    cpu_backend().multiply_half_spectra(coded, half, precision, num_threads(), y);
  }
  if (spec.rank > 0) add_low_rank(matrix, half, y);

  inverse_half_spectrum_over_rows(y, spec.rows, channels.data());
  cpu_backend().transpose({channels.data(), spec.rows, batch, batch},
                          matrix.output_multiplier().data(), nullptr, num_threads(), output);
}

}  // namespace

void matmul(const PackedMatrix& matrix, const MatrixView& activations, float* output,
            Precision precision) {
  const MatrixSpec& spec = matrix.spec();
  require_argument(activations.cols == spec.cols, "activations have width ", activations.cols,
                   ", expected ", spec.cols, " input channels");
  const Index batch = activations.rows;
  const Index parts = (batch + kActivationsAtOnce - 1) / kActivationsAtOnce;
  for (Index part = 0; part < parts; ++part) {
    const Index first = part * batch / parts, end = (part + 1) * batch / parts;
    const MatrixView some = {activations.data + first * activations.row_stride, end - first,
                             activations.cols, activations.row_stride};
    multiply_at_once(matrix, some, output + first * spec.rows, precision);
  }
}

}  // namespace llava_fa

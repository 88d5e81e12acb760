// CPU side of the packed product: complex rows to rows of the real Fourier basis.
//
// With the orthonormal real basis H = [Re half spectrum l = 0 .. n/2; Im half spectrum
// l = 1 .. (n-1)/2] of the activations, columns l and n - l of a complex row combine to
//   Re y += Re(a + b)/sqrt2 · Re H_l + Im(a - b)/sqrt2 · Im H_l
//   Im y += Im(a + b)/sqrt2 · Re H_l - Re(a - b)/sqrt2 · Im H_l,   a = Ã[k, l], b = Ã[k, n - l],
// and the self-conjugate columns l = 0 and l = n/2 enter once.
#include "backend.hpp"
#include "llava_fa/spectrum.hpp"
#include "parallel.hpp"

namespace llava_fa::cpu {
namespace {

constexpr Index kRowsPerItem = 8;
constexpr double kNanosecondsPerEntry = 1.0;
constexpr float kHalfSqrt = 0.70710678118654752440f;

void fold_row(const float* re, const float* im, Index n, float* real_row, float* imag_row) {
  const Index pairs = (n - 1) / 2, imag_start = half_rows(n) - 1;
  real_row[0] = re[0];
  imag_row[0] = im[0];
  for (Index l = 1; l <= pairs; ++l) {
    real_row[l] = kHalfSqrt * (re[l] + re[n - l]);
    imag_row[l] = kHalfSqrt * (im[l] + im[n - l]);
    real_row[imag_start + l] = kHalfSqrt * (im[l] - im[n - l]);
    imag_row[imag_start + l] = kHalfSqrt * (re[n - l] - re[l]);
  }
  if (n % 2 == 0) {
    real_row[n / 2] = re[n / 2];
    imag_row[n / 2] = im[n / 2];
  }
}

}  // namespace

void CpuBackend::fold_rows(const float* real, const float* imag, Index rows, Index n, int threads,
                           float* panel) const {
  const int team = worthwhile_threads(threads, kNanosecondsPerEntry * rows * n);
  parallel_for(ceil_div(rows, kRowsPerItem), team, [&](Index item) {
    const Index end = std::min(rows, (item + 1) * kRowsPerItem);
    for (Index k = item * kRowsPerItem; k < end; ++k) {
      fold_row(real + k * n, imag + k * n, n, panel + k * n, panel + (rows + k) * n);
    }
  });
}

}  // namespace llava_fa::cpu

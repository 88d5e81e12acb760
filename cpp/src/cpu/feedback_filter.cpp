// CPU factorization of the second moment into a feedback filter:
// 1. Σ̃ + damping · I from the half spectrum, with both index orders reversed, so that the
//    upper triangular R of R Rᴴ becomes the lower factor of an ordinary Cholesky factorization;
// 2. right-looking Cholesky by tiles: the diagonal tile, the tiles below it, then the update of
//    everything to the right; tiles are the parallel items, each a serial Eigen product;
// 3. M = R diag(R)⁻¹ and D = diag(R)², in the filter's blocks.
#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <complex>

#include "backend.hpp"
#include "llava_fa/spectrum.hpp"
#include "parallel.hpp"

namespace llava_fa::cpu {
namespace {

using Complex = std::complex<float>;
using Matrix = Eigen::Matrix<Complex, Eigen::Dynamic, Eigen::Dynamic>;

constexpr Index kTile = 192;

// conj(F) Σ Fᵀ at (k, l): row k of conj(F) is row n - k of F, and rows above n/2 of F Σ Fᵀ mirror.
class SpectralMoment {
 public:
  explicit SpectralMoment(const ComplexMatrix& half) : half_(half), n_(half.cols()) {}

  Complex operator()(Index k, Index l) const {
    const Index row = (n_ - k) % n_;
    if (row < half_.rows()) return kept(row, l);
    return std::conj(kept(n_ - row, (n_ - l) % n_));
  }

 private:
  Complex kept(Index row, Index col) const {
    const float factor = 1.0f / parseval_weight(row, n_);
    return {half_.real()[row * n_ + col] * factor, half_.imag()[row * n_ + col] * factor};
  }

  const ComplexMatrix& half_;
  Index n_;
};

Index tile_size(Index n, Index tile) { return std::min(kTile, n - tile * kTile); }

Eigen::Ref<Matrix> tile_at(Matrix& a, Index i, Index j) {
  return a.block(i * kTile, j * kTile, tile_size(a.rows(), i), tile_size(a.rows(), j));
}

bool factor_diagonal_tile(Eigen::Ref<Matrix> tile) {
  const Eigen::LLT<Matrix> factor(tile);
  if (factor.info() != Eigen::Success) return false;
  tile = factor.matrixL();
  return tile.diagonal().real().allFinite() && (tile.diagonal().real().array() > 0).all();
}

// Lower Cholesky factor in place; false if the matrix is not positive definite.
bool factor_by_tiles(Matrix& a, int threads) {
  const Index tiles = ceil_div(a.rows(), kTile);
  for (Index k = 0; k < tiles; ++k) {
    if (!factor_diagonal_tile(tile_at(a, k, k))) return false;
    const Matrix adjoint = tile_at(a, k, k).adjoint();
    const Index below = tiles - k - 1;
    parallel_for(below, threads, [&](Index item) {
      adjoint.triangularView<Eigen::Upper>().solveInPlace<Eigen::OnTheRight>(
          tile_at(a, k + 1 + item, k));
    });
    parallel_for(below * below, threads, [&](Index item) {
      const Index i = k + 1 + item / below, j = k + 1 + item % below;
      if (i < j) return;
      tile_at(a, i, j).noalias() -= tile_at(a, i, k) * tile_at(a, j, k).adjoint();
    });
  }
  return true;
}

// Block b of M from the reversed factor: R[i, j] = factor(n - 1 - i, n - 1 - j).
void fill_block(const Matrix& factor, Index b, FeedbackFilter& filter) {
  const Index n = filter.size, width = filter.block_width(b), first = b * FeedbackFilter::kBlock;
  float* block = filter.blocks.data() + FeedbackFilter::block_offset(b);
  for (Index c = 0; c < width; ++c) {
    const Index j = first + c;
    const float diagonal = factor(n - 1 - j, n - 1 - j).real();
    filter.diagonal[j] = diagonal * diagonal;
    for (Index i = 0; i < first + width; ++i) {
      const Complex entry = i < j ? factor(n - 1 - i, n - 1 - j) / diagonal : Complex{};
      block[i * 2 * width + c] = entry.real();
      block[i * 2 * width + width + c] = entry.imag();
    }
  }
}

}  // namespace

bool CpuBackend::factor_second_moment(const ComplexMatrix& half, double damping, int threads,
                                      FeedbackFilter& filter) const {
  const Index n = filter.size;
  const SpectralMoment moment(half);
  Matrix factor(n, n);
  parallel_for(n, threads, [&](Index j) {
    for (Index i = j; i < n; ++i) factor(i, j) = moment(n - 1 - i, n - 1 - j);
    factor(j, j) = Complex(factor(j, j).real() + static_cast<float>(damping), 0.0f);
  });
  if (!factor_by_tiles(factor, threads)) return false;
  parallel_for(filter.block_count(), threads, [&](Index b) { fill_block(factor, b, filter); });
  return true;
}

}  // namespace llava_fa::cpu

// CPU matrix products: complex products as single real products by Eigen over fixed blocks. Eigen's
// own threading is off: its blocking depends on the thread count, and results must not.
#include <Eigen/Core>

#include "backend.hpp"
#include "parallel.hpp"

namespace llava_fa::cpu {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const RowMajor>;

constexpr Index kProductBlock = 256;  // rows (or columns) of the large operand per item
constexpr Index kLowRankBlock = 64;   // rows per item of the low-rank update
constexpr Index kPanelBlock = 576;    // rows per item; multiply_half_spectra has no more

constexpr double kProductsPerNanosecond = 16;  // real multiply-adds of one thread, roughly

// Threads for a real product of (rows, inner) by (inner, cols).
int product_threads(int threads, Index rows, Index inner, Index cols) {
  return worthwhile_threads(threads,
                            double(rows) * double(inner) * double(cols) / kProductsPerNanosecond);
}

// The planes of a complex matrix stacked as one real (2 rows, cols) matrix.
ConstMap stacked(const ComplexMatrix& m) { return {m.real(), 2 * m.rows(), m.cols()}; }
ConstMap real_plane(const ComplexMatrix& m) { return {m.real(), m.rows(), m.cols()}; }
ConstMap imag_plane(const ComplexMatrix& m) { return {m.imag(), m.rows(), m.cols()}; }

}  // namespace

// [Re A; Im A] · [Re B | Im B] holds the four real products; Re C = ReRe - ImIm, Im C = ReIm +
// ImRe.
ComplexMatrix CpuBackend::multiply(const ComplexMatrix& left, const ComplexMatrix& right,
                                   int threads) const {
  const Index cols = right.cols();
  RowMajor both(right.rows(), 2 * cols);
  both << real_plane(right), imag_plane(right);
  ComplexMatrix out(left.rows(), cols);
  const int team = product_threads(threads, 2 * left.rows(), left.cols(), 2 * cols);
  parallel_for(ceil_div(left.rows(), kProductBlock), team, [&](Index item) {
    const Index first = item * kProductBlock, count = std::min(kProductBlock, left.rows() - first);
    const RowMajor re = real_plane(left).middleRows(first, count) * both;
    const RowMajor im = imag_plane(left).middleRows(first, count) * both;
    Eigen::Map<RowMajor>(out.real() + first * cols, count, cols) =
        re.leftCols(cols) - im.rightCols(cols);
    Eigen::Map<RowMajor>(out.imag() + first * cols, count, cols) =
        re.rightCols(cols) + im.leftCols(cols);
  });
  return out;
}

// Aᴴ B = [Re A; Im A]ᵀ · [[Re B, Im B]; [Im B, -Re B]].
ComplexMatrix CpuBackend::multiply_adjoint(const ComplexMatrix& left, const ComplexMatrix& right,
                                           int threads) const {
  const Index cols = right.cols();
  RowMajor both(2 * right.rows(), 2 * cols);
  both << real_plane(right), imag_plane(right), imag_plane(right), -real_plane(right);
  ComplexMatrix out(left.cols(), cols);
  const int team = product_threads(threads, left.cols(), 2 * left.rows(), 2 * cols);
  parallel_for(ceil_div(left.cols(), kProductBlock), team, [&](Index item) {
    const Index first = item * kProductBlock, count = std::min(kProductBlock, left.cols() - first);
    const RowMajor product = stacked(left).middleCols(first, count).transpose() * both;
    Eigen::Map<RowMajor>(out.real() + first * cols, count, cols) = product.leftCols(cols);
    Eigen::Map<RowMajor>(out.imag() + first * cols, count, cols) = product.rightCols(cols);
  });
  return out;
}

// Re (LᵀR) = [Re Lᵀ, -Im Lᵀ] · [Re R; Im R], Im (LᵀR) = [Im Lᵀ, Re Lᵀ] · [Re R; Im R].
void CpuBackend::subtract_low_rank(const ComplexMatrix& from, const ComplexMatrix& left,
                                   const ComplexMatrix& right, int threads,
                                   ComplexMatrix& out) const {
  const Index rank = left.rows(), cols = from.cols();
  const int team = product_threads(threads, 2 * from.rows(), 2 * rank, cols);
  parallel_for(ceil_div(from.rows(), kLowRankBlock), team, [&](Index item) {
    const Index first = item * kLowRankBlock, count = std::min(kLowRankBlock, from.rows() - first);
    const auto re = real_plane(left).middleCols(first, count).transpose();
    const auto im = imag_plane(left).middleCols(first, count).transpose();
    RowMajor factor(2 * count, 2 * rank);
    factor << re, -im, im, re;
    const RowMajor product = factor * stacked(right);
    Eigen::Map<RowMajor>(out.real() + first * cols, count, cols) =
        ConstMap(from.real() + first * cols, count, cols) - product.topRows(count);
    Eigen::Map<RowMajor>(out.imag() + first * cols, count, cols) =
        ConstMap(from.imag() + first * cols, count, cols) - product.bottomRows(count);
  });
}

void CpuBackend::multiply_panel(const float* panel, Index rows, Index n, const float* activations,
                                Index batch, int threads, float* out) const {
  const int team = product_threads(threads, rows, n, batch);
  parallel_for(ceil_div(rows, kPanelBlock), team, [&](Index item) {
    const Index first = item * kPanelBlock, count = std::min(kPanelBlock, rows - first);
    Eigen::Map<RowMajor>(out + first * batch, count, batch).noalias() =
        ConstMap(panel + first * n, count, n) * ConstMap(activations, n, batch);
  });
}

}  // namespace llava_fa::cpu

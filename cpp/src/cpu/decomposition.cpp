// CPU decompositions of thin and small complex matrices, in double precision on one thread.
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <complex>

#include "backend.hpp"

namespace llava_fa::cpu {
namespace {

using ComplexDouble = Eigen::Matrix<std::complex<double>, Eigen::Dynamic, Eigen::Dynamic>;

ComplexDouble to_double(const ComplexMatrix& m) {
  ComplexDouble out(m.rows(), m.cols());
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      out(i, j) = {m.real()[i * m.cols() + j], m.imag()[i * m.cols() + j]};
    }
  }
  return out;
}

ComplexMatrix from_double(const Eigen::Ref<const ComplexDouble>& in) {
  ComplexMatrix out(in.rows(), in.cols());
  for (Index i = 0; i < out.rows(); ++i) {
    for (Index j = 0; j < out.cols(); ++j) {
      out.real()[i * out.cols() + j] = static_cast<float>(in(i, j).real());
      out.imag()[i * out.cols() + j] = static_cast<float>(in(i, j).imag());
    }
  }
  return out;
}

struct QrFactors {
  ComplexDouble basis;     // (rows, cols), orthonormal columns
  ComplexDouble triangle;  // (cols, cols)
};

QrFactors qr_factors(const ComplexDouble& matrix) {
  const Eigen::HouseholderQR<ComplexDouble> qr(matrix);
  QrFactors out;
  out.triangle = qr.matrixQR().topRows(matrix.cols()).triangularView<Eigen::Upper>();
  out.basis = ComplexDouble::Identity(matrix.rows(), matrix.cols());
  out.basis.applyOnTheLeft(qr.householderQ());
  return out;
}

}  // namespace

ComplexMatrix CpuBackend::orthonormalize(ComplexMatrix& matrix) const {
  const QrFactors qr = qr_factors(to_double(matrix));
  matrix = from_double(qr.basis);
  return from_double(qr.triangle);
}

// 1. Left vectors U: eigenvectors of A Aᴴ. In double precision this resolves singular values down
// to
//    1e-8 of the largest, below what float32 entries carry.
// 2. The rows of Uᴴ A are orthogonal with norms s; the QR of their adjoint gives right vectors that
//    stay orthonormal where s vanishes, and s = |diagonal|.
void CpuBackend::full_svd(const ComplexMatrix& matrix, ComplexMatrix& left, std::span<float> values,
                          ComplexMatrix& right) const {
  const bool tall = matrix.rows() > matrix.cols();
  ComplexDouble wide = to_double(matrix);
  if (tall) wide.adjointInPlace();
  const ComplexDouble gram = wide * wide.adjoint();
  const Eigen::SelfAdjointEigenSolver<ComplexDouble> eigen(gram);
  const ComplexDouble short_vectors = eigen.eigenvectors().rowwise().reverse();
  const QrFactors qr = qr_factors(wide.adjoint() * short_vectors);
  ComplexDouble long_vectors = qr.basis;
  for (Index i = 0; i < gram.rows(); ++i) {
    const std::complex<double> diagonal = qr.triangle(i, i);
    values[i] = static_cast<float>(std::abs(diagonal));
    if (std::abs(diagonal) > 0) long_vectors.col(i) *= diagonal / std::abs(diagonal);
  }
  left = from_double(tall ? long_vectors : short_vectors);
  right = from_double((tall ? short_vectors : long_vectors).adjoint());
}

}  // namespace llava_fa::cpu

// Slow, clear float64 references and test data.
#pragma once

#include <cmath>
#include <complex>
#include <numbers>
#include <random>
#include <vector>

#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa::reference {

using Complex = std::complex<double>;

struct Dense {
  Index rows, cols;
  std::vector<float> values;

  MatrixView view() const { return {values.data(), rows, cols, cols}; }
  float at(Index i, Index j) const { return values[i * cols + j]; }
};

inline Dense gaussian(Index rows, Index cols, unsigned seed = 1, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  Dense out{rows, cols, std::vector<float>(rows * cols)};
  for (float& value : out.values) value = normal(engine);
  return out;
}

inline ComplexMatrix complex_gaussian(Index rows, Index cols, unsigned seed = 1) {
  const Dense planes = gaussian(2 * rows, cols, seed, std::sqrt(0.5f));
  ComplexMatrix out(rows, cols);
  std::copy(planes.values.begin(), planes.values.end(), out.real());
  return out;
}

inline Complex entry(const ComplexMatrix& m, Index i, Index j) {
  return {m.real()[i * m.cols() + j], m.imag()[i * m.cols() + j]};
}

inline Complex root(Index numerator, Index length) {
  const double angle = -2 * std::numbers::pi * static_cast<double>(numerator % length) / length;
  return {std::cos(angle), std::sin(angle)};
}

// omega_k (F_m W F_n^T)[k, l] by the definition, O(m^2 n + m n^2).
inline std::vector<Complex> half_spectrum(const Dense& w) {
  const Index m = w.rows, n = w.cols, h = m / 2 + 1;
  std::vector<Complex> columns(h * n), out(h * n);
  for (Index k = 0; k < h; ++k) {
    const double omega = k == 0 || 2 * k == m ? 1.0 : std::numbers::sqrt2;
    for (Index j = 0; j < n; ++j) {
      for (Index i = 0; i < m; ++i) columns[k * n + j] += double(w.at(i, j)) * root(i * k, m);
    }
    for (Index l = 0; l < n; ++l) {
      for (Index j = 0; j < n; ++j) out[k * n + l] += columns[k * n + j] * root(j * l, n);
      out[k * n + l] *= omega / std::sqrt(double(m) * double(n));
    }
  }
  return out;
}

inline double norm(const std::vector<float>& values) {
  double total = 0;
  for (const float v : values) total += double(v) * v;
  return std::sqrt(total);
}

inline double norm(const ComplexMatrix& m) {
  double total = 0;
  for (Index i = 0; i < 2 * m.count(); ++i) total += double(m.real()[i]) * m.real()[i];
  return std::sqrt(total);
}

inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
  return std::sqrt(total);
}

inline double distance(const ComplexMatrix& a, const ComplexMatrix& b) {
  double total = 0;
  for (Index i = 0; i < 2 * a.count(); ++i) {
    const double d = double(a.real()[i]) - b.real()[i];
    total += d * d;
  }
  return std::sqrt(total);
}

// Relative distance of `output` (x.rows, m) from the float64 product with the decoded weight.
inline double product_error(const PackedMatrix& packed, const Dense& x,
                            const std::vector<float>& output) {
  const Index m = packed.spec().rows, n = packed.spec().cols;
  std::vector<float> weight(m * n);
  packed.decode(weight.data());
  double error = 0, energy = 0;
  for (Index b = 0; b < x.rows; ++b) {
    for (Index i = 0; i < m; ++i) {
      double y = 0;
      for (Index j = 0; j < n; ++j) y += double(x.at(b, j)) * weight[i * n + j];
      error += std::pow(y - output[b * m + i], 2);
      energy += y * y;
    }
  }
  return std::sqrt(error / energy);
}

// left (p, q) times right (q, r), in double precision.
inline ComplexMatrix product(const ComplexMatrix& left, const ComplexMatrix& right) {
  ComplexMatrix out(left.rows(), right.cols());
  for (Index i = 0; i < left.rows(); ++i) {
    for (Index j = 0; j < right.cols(); ++j) {
      Complex total;
      for (Index q = 0; q < left.cols(); ++q) total += entry(left, i, q) * entry(right, q, j);
      out.real()[i * right.cols() + j] = static_cast<float>(total.real());
      out.imag()[i * right.cols() + j] = static_cast<float>(total.imag());
    }
  }
  return out;
}

}  // namespace llava_fa::reference

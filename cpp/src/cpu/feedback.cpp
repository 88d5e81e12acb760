// CPU encoder column by column, one segment of rows per item (rows never see each other's errors).
// With errors E = A - Q of the columns before a block and the filter's M:
//
// 1. Row scales: each row's root mean square (`uniform`: its largest magnitude) times the gain, as
//    binary16.
// 2. Per block: targets T = A + E M and references F = A M over all columns before it, as real
//    products.
// 3. Per column of the block: codes of T, error e = a - q; e and a are carried to the later columns
//    of the block.
// 4. (Δ M)_j = t_j - q_j gives each row's cost, and f_j - (t_j - q_j) = (Q M)_j the least-squares
//    refit of its scale.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <optional>

#include "../bit_packing.hpp"
#include "../half_float.hpp"
#include "backend.hpp"
#include "parallel.hpp"
#include "polar_codec.hpp"
#include "trellis.hpp"

namespace llava_fa::cpu {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const RowMajor>;
using Strided = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;
constexpr Index kBlock = FeedbackFilter::kBlock;

// Real and imaginary planes of up to kBlock columns, each column contiguous over the rows.
class ColumnBlock {
 public:
  explicit ColumnBlock(Index rows) : rows_(rows), planes_(2 * kBlock * rows) {}
  float* real(Index c) { return planes_.data() + 2 * c * rows_; }
  float* imag(Index c) { return real(c) + rows_; }

 private:
  Index rows_;
  FloatBuffer planes_;
};

// Rows [begin, end) of a matrix, and everything that coding them needs.
class SegmentEncoder {
 public:
  SegmentEncoder(const ColumnCoding& coding, Index most_rows, Index cols)
      : coding_(coding),
        cols_(cols),
        errors_(coding.filter != nullptr ? 2 * most_rows * cols : 0),
        original_(most_rows),
        target_(most_rows),
        reference_(most_rows),
        relative_(2 * most_rows),
        scale_(most_rows),
        inverse_(most_rows),
        weight_(most_rows),
        picked_(most_rows),
        codes_(static_cast<std::size_t>(most_rows * cols)),
        cost_(most_rows),
        cross_(most_rows),
        power_(most_rows),
        energy_(most_rows) {
    if (coding.trellis != nullptr) search_.emplace(*coding.trellis, most_rows);
  }

  void encode(ComplexMatrix& values, Index begin, Index end, PolarCodes& codes,
              std::span<double> row_errors, std::span<double> row_energies) {
    real_ = values.real() + begin * cols_;
    imag_ = values.imag() + begin * cols_;
    rows_ = end - begin;
    choose_scales();
    for (Index first = 0; first < cols_; first += kBlock) encode_block(first);
    for (Index r = 0; r < rows_; ++r) finish_row(r, begin + r, codes, row_errors, row_energies);
  }

 private:
  // Step 1.
  void choose_scales() {
    const bool uniform =
        coding_.constellation != nullptr && coding_.constellation->codec == Codec::uniform;
    for (Index r = 0; r < rows_; ++r) {
      double energy = 0;
      float largest = 0;
      for (Index l = r * cols_; l < (r + 1) * cols_; ++l) {
        const float square = real_[l] * real_[l] + imag_[l] * imag_[l];
        energy += square;
        largest = std::max(largest, square);
      }
      const double square = uniform ? largest : energy / static_cast<double>(cols_);
      const float size = static_cast<float>(std::sqrt(square));
      scale_[r] = half_to_float(float_to_half(std::min(coding_.gain * size, kLargestHalf)));
      const float decision = scale_[r] / coding_.gain;
      inverse_[r] = decision > 0 ? 1.0f / decision : 0.0f;
      weight_[r] = decision * decision;
    }
    for (auto* sums : {&cost_, &cross_, &power_, &energy_}) std::fill_n(sums->data(), rows_, 0.0);
  }

  void encode_block(Index first) {
    const Index width = std::min(kBlock, cols_ - first);
    load_block(first, width);
    for (Index c = 0; c < width; ++c) {
      encode_column(first + c, c);
      if (coding_.filter != nullptr) carry(first, width, c);
    }
    store_errors(first, width);
  }

  // Step 2.
  void load_block(Index first, Index width) {
    for (Index c = 0; c < width; ++c) {
      for (Index r = 0; r < rows_; ++r) {
        original_.real(c)[r] = real_[r * cols_ + first + c];
        original_.imag(c)[r] = imag_[r * cols_ + first + c];
      }
      std::copy_n(original_.real(c), rows_, target_.real(c));
      std::copy_n(original_.imag(c), rows_, target_.imag(c));
      std::copy_n(original_.real(c), rows_, reference_.real(c));
      std::copy_n(original_.imag(c), rows_, reference_.imag(c));
    }
    if (coding_.filter == nullptr || first == 0) return;
    add_product(errors_.data(), errors_.data() + rows_ * cols_, first, width, target_);
    add_product(real_, imag_, first, width, reference_);
  }

  // into += X[:, :first] · M[:first, block]
  void add_product(const float* real, const float* imag, Index first, Index width,
                   ColumnBlock& into) {
    const Eigen::OuterStride<> stride(cols_);
    const ConstMap block(coding_.filter->block(first / kBlock), first, 2 * width);
    product_real_.noalias() = Strided(real, rows_, first, stride) * block;
    product_imag_.noalias() = Strided(imag, rows_, first, stride) * block;
    for (Index c = 0; c < width; ++c) {
      for (Index r = 0; r < rows_; ++r) {
        into.real(c)[r] += product_real_(r, c) - product_imag_(r, width + c);
        into.imag(c)[r] += product_real_(r, width + c) + product_imag_(r, c);
      }
    }
  }

  // Step 3, and the sums of step 4.
  void encode_column(Index j, Index c) {
    float *x = relative_.data(), *y = x + rows_;
    const float *tr = target_.real(c), *ti = target_.imag(c);
    for (Index r = 0; r < rows_; ++r) {
      x[r] = tr[r] * inverse_[r];
      y[r] = ti[r] * inverse_[r];
    }
    const float *point_real, *point_imag;
    if (search_) {
      search_->search(x, y, weight_.data(), rows_, picked_.data());
      point_real = coding_.trellis->point_real.data();
      point_imag = coding_.trellis->point_imag.data();
    } else {
      encode_run(x, y, rows_, 1.0f, *coding_.constellation, picked_.data());
      point_real = coding_.constellation->point_real.data();
      point_imag = coding_.constellation->point_imag.data();
    }
    const double d = column_cost(j);
    const Index place = search_ ? stored_column(cols_, j) : j;
    const float *fr = reference_.real(c), *fi = reference_.imag(c);
    float *ar = original_.real(c), *ai = original_.imag(c);
    for (Index r = 0; r < rows_; ++r) {
      const float qr = scale_[r] * point_real[picked_[r]], qi = scale_[r] * point_imag[picked_[r]];
      const float dr = tr[r] - qr, di = ti[r] - qi;  // (Δ M)_j
      const float gr = fr[r] - dr, gi = fi[r] - di;  // (Q M)_j
      cost_[r] += d * (dr * dr + di * di);
      cross_[r] += d * (fr[r] * gr + fi[r] * gi);
      power_[r] += d * (gr * gr + gi * gi);
      energy_[r] += d * (fr[r] * fr[r] + fi[r] * fi[r]);
      x[r] = ar[r] - qr;
      y[r] = ai[r] - qi;
      codes_[r * cols_ + place] = search_ ? coding_.trellis->stored_code(picked_[r]) : picked_[r];
    }
  }

  double column_cost(Index j) const {
    if (coding_.filter != nullptr) return coding_.filter->diagonal[j];
    return coding_.column_weight != nullptr ? coding_.column_weight[j] : 1.0;
  }

  // Adds what column c, whose error is in `relative_`, gives to the later columns of the block.
  void carry(Index first, Index width, Index c) {
    const float* coefficients = coding_.filter->block(first / kBlock) + (first + c) * 2 * width;
    const float *er = relative_.data(), *ei = er + rows_;
    const float *ar = original_.real(c), *ai = original_.imag(c);
    for (Index later = c + 1; later < width; ++later) {
      const float mr = coefficients[later], mi = coefficients[width + later];
      add_scaled(er, ei, mr, mi, target_.real(later), target_.imag(later));
      add_scaled(ar, ai, mr, mi, reference_.real(later), reference_.imag(later));
    }
    // The original is not needed any more: its place keeps the error for `store_errors`.
    std::copy_n(er, rows_, original_.real(c));
    std::copy_n(ei, rows_, original_.imag(c));
  }

  void add_scaled(const float* xr, const float* xi, float mr, float mi, float* into_real,
                  float* into_imag) const {
    for (Index r = 0; r < rows_; ++r) {
      into_real[r] += xr[r] * mr - xi[r] * mi;
      into_imag[r] += xr[r] * mi + xi[r] * mr;
    }
  }

  void store_errors(Index first, Index width) {
    if (coding_.filter == nullptr) return;
    float *er = errors_.data() + first, *ei = er + rows_ * cols_;
    for (Index r = 0; r < rows_; ++r) {
      for (Index c = 0; c < width; ++c) {
        er[r * cols_ + c] = original_.real(c)[r];
        ei[r * cols_ + c] = original_.imag(c)[r];
      }
    }
  }

  // Step 4: the scale becomes rho times itself, and cost = energy - 2 rho cross + rho^2 power.
  void finish_row(Index r, Index row, PolarCodes& codes, std::span<double> row_errors,
                  std::span<double> row_energies) {
    double best = power_[r] > 0 ? std::max(cross_[r] / power_[r], 0.0) : 0.0;
    if (!coding_.refit) best = 1.0;
    codes.row_scale[row] = float_to_half(static_cast<float>(best * scale_[r]));
    const double refitted = half_to_float(codes.row_scale[row]);
    const double rho = scale_[r] > 0 ? refitted / scale_[r] : 0.0;
    const double change = (rho - 1.0) * ((rho + 1.0) * power_[r] - 2.0 * cross_[r]);
    row_errors[row] = scale_[r] > 0 ? std::max(cost_[r] + change, 0.0) : energy_[r];
    row_energies[row] = energy_[r];
    const Index row_bytes = packed_row_bytes(cols_, codes.code_bits);
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(row_bytes));
    pack_row(codes_.data() + r * cols_, cols_, codes.code_bits, packed.data());
    write_row(packed.data(), codes.rows, row_bytes, row, codes.packed.data());
    if (coding_.write_back) write_back(r, static_cast<float>(refitted));
  }

  void write_back(Index r, float scale) {
    // Trellis states need the rows above; the caller decodes those (encode_columns).
    if (search_) return;
    const Constellation& points = *coding_.constellation;
    for (Index l = 0; l < cols_; ++l) {
      const std::uint16_t code = codes_[r * cols_ + l];
      real_[r * cols_ + l] = scale * points.point_real[code];
      imag_[r * cols_ + l] = scale * points.point_imag[code];
    }
  }

  const ColumnCoding& coding_;
  Index cols_;
  Index rows_ = 0;
  float* real_ = nullptr;  // the segment in the matrix
  float* imag_ = nullptr;
  FloatBuffer errors_;                           // E, two planes (rows, cols)
  ColumnBlock original_, target_, reference_;    // A, T and F of the present block
  RowMajor product_real_, product_imag_;         // (rows, 2 width)
  std::vector<float> relative_;                  // target over scale, then the error
  std::vector<float> scale_, inverse_, weight_;  // per row
  std::vector<std::uint16_t> picked_;            // states or codes of a column
  std::vector<std::uint16_t> codes_;             // (rows, cols), as they are stored
  // Per row, sums over columns j of D_j times |(Δ M)_j|², <(A M)_j, (Q M)_j>, |(Q M)_j|², |(A
  // M)_j|².
  std::vector<double> cost_, cross_, power_, energy_;
  std::optional<ViterbiSearch> search_;
};

// Rows of a complex matrix, all of whose columns a filter acts on.
struct PlaneRows {
  float* real;
  float* imag;
  Index rows;
};

constexpr Index kFilterRows = 64;  // per item

template <typename Body>
void for_row_groups(ComplexMatrix& matrix, int threads, Body body) {
  parallel_for(ceil_div(matrix.rows(), kFilterRows), threads, [&](Index item) {
    const Index first = item * kFilterRows, offset = first * matrix.cols();
    body(PlaneRows{matrix.real() + offset, matrix.imag() + offset,
                   std::min(kFilterRows, matrix.rows() - first)});
  });
}

// block b of X += sign · X[:, :depth] · M[:depth, block b]
void add_block_product(const FeedbackFilter& filter, Index b, Index depth, float sign,
                       const PlaneRows& x) {
  const Index n = filter.size, width = filter.block_width(b), first = b * kBlock;
  const ConstMap block(filter.block(b), depth, 2 * width);
  const RowMajor re = Strided(x.real, x.rows, depth, Eigen::OuterStride<>(n)) * block;
  const RowMajor im = Strided(x.imag, x.rows, depth, Eigen::OuterStride<>(n)) * block;
  for (Index r = 0; r < x.rows; ++r) {
    for (Index c = 0; c < width; ++c) {
      x.real[r * n + first + c] += sign * (re(r, c) - im(r, width + c));
      x.imag[r * n + first + c] += sign * (re(r, width + c) + im(r, c));
    }
  }
}

// Block b of X ← block b · M[block b, block b]⁻¹, column by column.
void solve_within_block(const FeedbackFilter& filter, Index b, const PlaneRows& x) {
  const Index n = filter.size, width = filter.block_width(b), first = b * kBlock;
  for (Index i = 0; i < width; ++i) {
    const float* row = filter.block(b) + (first + i) * 2 * width;
    for (Index r = 0; r < x.rows; ++r) {
      float *re = x.real + r * n + first, *im = x.imag + r * n + first;
      for (Index c = i + 1; c < width; ++c) {
        re[c] -= re[i] * row[c] - im[i] * row[width + c];
        im[c] -= re[i] * row[width + c] + im[i] * row[c];
      }
    }
  }
}

void scale_columns(const std::vector<float>& factor, const PlaneRows& x) {
  const Index n = static_cast<Index>(factor.size());
  for (Index r = 0; r < x.rows; ++r) {
    for (Index j = 0; j < n; ++j) {
      x.real[r * n + j] *= factor[j];
      x.imag[r * n + j] *= factor[j];
    }
  }
}

std::vector<float> roots(const std::vector<float>& diagonal, float power) {
  std::vector<float> out(diagonal.size());
  std::transform(diagonal.begin(), diagonal.end(), out.begin(),
                 [power](float d) { return std::pow(d, power); });
  return out;
}

}  // namespace

void CpuBackend::encode_columns(ComplexMatrix& values, const ColumnCoding& coding, int threads,
                                PolarCodes& codes, std::span<double> row_errors,
                                std::span<double> row_energies) const {
  const Index rows = values.rows(), segments = segment_count(rows);
  const Index most_rows = std::min(rows, 2 * kSegmentRows);
  parallel_for(
      segments, threads, [&] { return SegmentEncoder(coding, most_rows, values.cols()); },
      [&](Index segment, SegmentEncoder& encoder) {
        encoder.encode(values, segment_begin(rows, segment), segment_begin(rows, segment + 1),
                       codes, row_errors, row_energies);
      });
  if (coding.write_back && coding.trellis != nullptr) {
    decode_trellis_rows(codes.packed.data(), codes.row_scale.data(), rows, values.cols(),
                        *coding.trellis, 0, rows, threads, values.real(), values.imag());
  }
}

// From the last block to the first: a block reads only itself and earlier ones.
void CpuBackend::apply_filter(const FeedbackFilter& filter, int threads,
                              ComplexMatrix& rows) const {
  const std::vector<float> factor = roots(filter.diagonal, 0.5f);
  for_row_groups(rows, threads, [&](const PlaneRows& x) {
    for (Index b = filter.block_count() - 1; b >= 0; --b) {
      add_block_product(filter, b, b * kBlock + filter.block_width(b), 1.0f, x);
    }
    scale_columns(factor, x);
  });
}

void CpuBackend::solve_filter(const FeedbackFilter& filter, int threads,
                              ComplexMatrix& rows) const {
  const std::vector<float> factor = roots(filter.diagonal, -0.5f);
  for_row_groups(rows, threads, [&](const PlaneRows& x) {
    scale_columns(factor, x);
    for (Index b = 0; b < filter.block_count(); ++b) {
      if (b > 0) add_block_product(filter, b, b * kBlock, -1.0f, x);
      solve_within_block(filter, b, x);
    }
  });
}

}  // namespace llava_fa::cpu

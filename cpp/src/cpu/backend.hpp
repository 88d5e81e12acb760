// The CPU side of the backend contract; one group of methods per kernel file.
#pragma once

#include "../backend.hpp"

namespace llava_fa::cpu {

class CpuBackend final : public Backend {
 public:
  void forward_over_rows(const MatrixView& values, const float* row_multiplier,
                         const float* col_multiplier, int threads,
                         ComplexMatrix& out) const override;
  void inverse_over_rows(const ComplexMatrix& spectrum, Index length, const float* row_multiplier,
                         const float* col_multiplier, int threads, float* out) const override;
  void transform_rows(ComplexMatrix& spectrum, bool inverse, int threads) const override;

  ComplexMatrix multiply(const ComplexMatrix& left, const ComplexMatrix& right,
                         int threads) const override;
  ComplexMatrix multiply_adjoint(const ComplexMatrix& left, const ComplexMatrix& right,
                                 int threads) const override;
  void subtract_low_rank(const ComplexMatrix& from, const ComplexMatrix& left,
                         const ComplexMatrix& right, int threads,
                         ComplexMatrix& out) const override;
  void multiply_panel(const float* panel, Index rows, Index n, const float* activations,
                      Index batch, int threads, float* out) const override;
  ComplexMatrix orthonormalize(ComplexMatrix& matrix) const override;
  void full_svd(const ComplexMatrix& matrix, ComplexMatrix& left, std::span<float> values,
                ComplexMatrix& right) const override;

  void subtract_from(const ComplexMatrix& from, const float* column_factor, int threads,
                     ComplexMatrix& inout) const override;
  void transpose(const MatrixView& in, const float* row_factor, const float* col_factor,
                 int threads, float* out) const override;
  void channel_energies(const MatrixView& values, const float* row_multiplier,
                        const float* col_multiplier, int threads, std::span<double> rows,
                        std::span<double> cols) const override;
  void row_energies(const ComplexMatrix& matrix, const float* column_weight, int threads,
                    std::span<double> energies) const override;

  void fill_gaussian(std::uint64_t seed, Index first_column, int threads,
                     ComplexMatrix& out) const override;

  void encode_rows(ComplexMatrix& values, const Constellation& points, const float* column_weight,
                   bool write_back, int threads, PolarCodes& codes,
                   std::span<double> row_errors) const override;
  void decode_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                   Index cols, const Constellation& points, Index first_row, Index row_count,
                   int threads, float* real, float* imag) const override;

  void decode_trellis_rows(const std::uint8_t* packed, const std::uint16_t* row_scale, Index rows,
                           Index cols, const Trellis& code, Index first_row, Index row_count,
                           int threads, float* real, float* imag) const override;

  bool factor_second_moment(const ComplexMatrix& half, double damping, int threads,
                            FeedbackFilter& filter) const override;
  void apply_filter(const FeedbackFilter& filter, int threads, ComplexMatrix& rows) const override;
  void solve_filter(const FeedbackFilter& filter, int threads, ComplexMatrix& rows) const override;
  void encode_columns(ComplexMatrix& values, const ColumnCoding& coding, int threads,
                      PolarCodes& codes, std::span<double> row_errors,
                      std::span<double> row_energies) const override;

  void fold_rows(const float* real, const float* imag, Index rows, Index n, int threads,
                 float* panel) const override;
  void multiply_half_spectra(const CodedMatrix& matrix, const ComplexMatrix& half,
                             Precision precision, int threads, ComplexMatrix& y) const override;
  Index most_vectors(const CodedMatrix& matrix, Precision precision) const override;
  void multiply_vector(const CodedMatrix& matrix, const float* x_real, const float* x_imag,
                       Precision precision, int threads, float* y_real,
                       float* y_imag) const override;
};

}  // namespace llava_fa::cpu

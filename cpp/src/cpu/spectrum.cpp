// CPU half spectrum.
//
// 1. Columns are taken 2 * kLanes at a time; one half becomes the real plane, the other the
//    imaginary plane of a complex DFT, so two real columns cost one complex transform.
// 2. Z = A1 + i A2 is separated by conjugate symmetry: A1[k] = (Z[k] + conj Z[m-k]) / 2,
//    A2[k] = (Z[k] - conj Z[m-k]) / 2i, and only k <= m/2 is stored, times the Parseval weight.
// 3. Rows are transformed kLanes at a time after a transposition into lanes.
// 4. A single column is one real vector, spread over the lanes.
#include <cmath>
#include <vector>

#include "backend.hpp"
#include "fft_single.hpp"
#include "llava_fa/spectrum.hpp"
#include "parallel.hpp"

namespace llava_fa::cpu {
namespace {

// Data and scratch of one thread's transforms.
struct Workspace {
  explicit Workspace(const FftPlan& plan)
      : storage((2 * plan.length() + plan.scratch_lanes()) * kLanes),
        data{reinterpret_cast<Lane*>(storage.data()),
             reinterpret_cast<Lane*>(storage.data()) + plan.length()},
        scratch(reinterpret_cast<Lane*>(storage.data()) + 2 * plan.length()) {}
  Workspace(Workspace&&) = delete;

  FloatBuffer storage;
  LaneSpan data;
  Lane* scratch;
};

// omega_k / sqrt(length): Parseval weight and unitary normalization in one factor.
std::vector<float> row_factors(Index length, bool inverse) {
  const double norm = 1.0 / std::sqrt(static_cast<double>(length));
  const double weight = std::sqrt(2.0);
  std::vector<float> factors(static_cast<std::size_t>(half_rows(length)),
                             static_cast<float>(inverse ? norm / weight : norm * weight));
  factors.front() = static_cast<float>(norm);
  if (length % 2 == 0) factors.back() = static_cast<float>(norm);
  return factors;
}

// Reads up to kLanes values; lanes past `count` are zero.
Lane load_partial(const float* p, Index count) {
  if (count >= kLanes) return load_lane(p);
  Lane v{};
  for (Index lane = 0; lane < count; ++lane) v[lane] = p[lane];
  return v;
}

void store_partial(float* p, Lane v, Index count) {
  if (count >= kLanes) return store_lane(p, v);
  for (Index lane = 0; lane < count; ++lane) p[lane] = v[lane];
}

// The two column groups of one block: first and second kLanes columns, each possibly short.
struct ColumnBlock {
  Index first;
  Index counts[2];

  ColumnBlock(Index block, Index cols) : first(block * 2 * kLanes) {
    for (int g = 0; g < 2; ++g) {
      counts[g] = std::max<Index>(0, std::min(kLanes, cols - first - g * kLanes));
    }
  }
  Index start(int group) const { return first + group * kLanes; }
};

void gather_columns(const MatrixView& values, const ColumnBlock& block, const float* row_multiplier,
                    const float* col_multiplier, LaneSpan data) {
  Lane scale[2] = {broadcast(1.0f), broadcast(1.0f)};
  for (int g = 0; g < 2 && col_multiplier; ++g) {
    scale[g] = load_partial(col_multiplier + block.start(g), block.counts[g]);
  }
  for (Index i = 0; i < values.rows; ++i) {
    const float* row = values.row(i);
    const float r = row_multiplier ? row_multiplier[i] : 1.0f;
    data.re[i] = load_partial(row + block.start(0), block.counts[0]) * scale[0] * r;
    data.im[i] = load_partial(row + block.start(1), block.counts[1]) * scale[1] * r;
  }
}

void separate_columns(LaneSpan z, Index length, const ColumnBlock& block, const float* factors,
                      ComplexMatrix& out) {
  const Index n = out.cols();
  for (Index k = 0; k < half_rows(length); ++k) {
    const Index mirror = k == 0 ? 0 : length - k;
    const float half = 0.5f * factors[k];
    const Lane re1 = (z.re[k] + z.re[mirror]) * half, im1 = (z.im[k] - z.im[mirror]) * half;
    const Lane re2 = (z.im[k] + z.im[mirror]) * half, im2 = (z.re[mirror] - z.re[k]) * half;
    store_partial(out.real() + k * n + block.start(0), re1, block.counts[0]);
    store_partial(out.imag() + k * n + block.start(0), im1, block.counts[0]);
    store_partial(out.real() + k * n + block.start(1), re2, block.counts[1]);
    store_partial(out.imag() + k * n + block.start(1), im2, block.counts[1]);
  }
}

// Inverse of separate_columns; rows that are their own mirror lose their imaginary part.
void combine_columns(const ComplexMatrix& spectrum, Index length, const ColumnBlock& block,
                     const float* factors, LaneSpan z) {
  const Index n = spectrum.cols();
  for (Index k = 0; k < half_rows(length); ++k) {
    const float f = factors[k];
    const Lane re1 = load_partial(spectrum.real() + k * n + block.start(0), block.counts[0]) * f;
    const Lane im1 = load_partial(spectrum.imag() + k * n + block.start(0), block.counts[0]) * f;
    const Lane re2 = load_partial(spectrum.real() + k * n + block.start(1), block.counts[1]) * f;
    const Lane im2 = load_partial(spectrum.imag() + k * n + block.start(1), block.counts[1]) * f;
    if (k == 0 || 2 * k == length) {
      z.re[k] = re1;
      z.im[k] = re2;
    } else {
      z.re[k] = re1 - im2;
      z.im[k] = im1 + re2;
      z.re[length - k] = re1 + im2;
      z.im[length - k] = re2 - im1;
    }
  }
}

void scatter_columns(LaneSpan data, Index length, Index cols, const ColumnBlock& block,
                     const float* row_multiplier, const float* col_multiplier, float* out) {
  Lane scale[2] = {broadcast(1.0f), broadcast(1.0f)};
  for (int g = 0; g < 2 && col_multiplier; ++g) {
    scale[g] = load_partial(col_multiplier + block.start(g), block.counts[g]);
  }
  for (Index i = 0; i < length; ++i) {
    const float r = row_multiplier ? row_multiplier[i] : 1.0f;
    float* row = out + i * cols;
    store_partial(row + block.start(0), data.re[i] * scale[0] * r, block.counts[0]);
    store_partial(row + block.start(1), data.im[i] * scale[1] * r, block.counts[1]);
  }
}

// Rows first .. first+count of a plane into lanes, element by element.
void rows_to_lanes(const float* plane, Index cols, Index count, Lane* lanes) {
  float* out = reinterpret_cast<float*>(lanes);
  for (Index lane = 0; lane < kLanes; ++lane) {
    const float* row = plane + lane * cols;
    for (Index l = 0; l < cols; ++l) out[l * kLanes + lane] = lane < count ? row[l] : 0.0f;
  }
}

void lanes_to_rows(const Lane* lanes, Index cols, Index count, float factor, float* plane) {
  const float* in = reinterpret_cast<const float*>(lanes);
  for (Index lane = 0; lane < count; ++lane) {
    float* row = plane + lane * cols;
    for (Index l = 0; l < cols; ++l) row[l] = in[l * kLanes + lane] * factor;
  }
}

// One column.
void forward_vector(const MatrixView& values, const float* row_multiplier, float factor,
                    ComplexMatrix& out) {
  FloatBuffer column(values.rows);
  for (Index i = 0; i < values.rows; ++i) {
    column.data()[i] = values.row(i)[0] * factor * (row_multiplier ? row_multiplier[i] : 1.0f);
  }
  SingleFftPlan::cached(values.rows).forward(column.data(), out.real(), out.imag());
}

// Inverse of forward_vector.
void inverse_vector(const ComplexMatrix& spectrum, Index length, const float* row_multiplier,
                    float factor, float* out) {
  SingleFftPlan::cached(length).inverse(spectrum.real(), spectrum.imag(), out);
  for (Index i = 0; i < length; ++i) out[i] *= factor * (row_multiplier ? row_multiplier[i] : 1.0f);
}

// Threads for transforms of so many complex entries in all, a step of a product or a compression.
int transform_threads(int threads, Index entries) {
  constexpr double kNanosecondsPerEntry = 1.0;
  return step_threads(threads, kNanosecondsPerEntry * static_cast<double>(entries));
}

}  // namespace

void CpuBackend::forward_over_rows(const MatrixView& values, const float* row_multiplier,
                                   const float* col_multiplier, int threads,
                                   ComplexMatrix& out) const {
  if (values.cols == 1 && SingleFftPlan::applies(values.rows)) {
    return forward_vector(values, row_multiplier, col_multiplier ? col_multiplier[0] : 1.0f, out);
  }
  const std::vector<float> factors = row_factors(values.rows, false);
  const FftPlan& plan = FftPlan::cached(values.rows);
  parallel_for(
      ceil_div(values.cols, 2 * kLanes), transform_threads(threads, values.rows * values.cols / 2),
      [&] { return Workspace(plan); },
      [&](Index item, Workspace& work) {
        const ColumnBlock block(item, values.cols);
        gather_columns(values, block, row_multiplier, col_multiplier, work.data);
        const LaneSpan z = plan.forward(work.data, work.scratch);
        separate_columns(z, values.rows, block, factors.data(), out);
      });
}

void CpuBackend::inverse_over_rows(const ComplexMatrix& spectrum, Index length,
                                   const float* row_multiplier, const float* col_multiplier,
                                   int threads, float* out) const {
  if (spectrum.cols() == 1 && SingleFftPlan::applies(length)) {
    return inverse_vector(spectrum, length, row_multiplier,
                          col_multiplier ? col_multiplier[0] : 1.0f, out);
  }
  const std::vector<float> factors = row_factors(length, true);
  const FftPlan& plan = FftPlan::cached(length);
  parallel_for(
      ceil_div(spectrum.cols(), 2 * kLanes),
      transform_threads(threads, length * spectrum.cols() / 2), [&] { return Workspace(plan); },
      [&](Index item, Workspace& work) {
        const ColumnBlock block(item, spectrum.cols());
        combine_columns(spectrum, length, block, factors.data(), work.data);
        const LaneSpan swapped = plan.forward({work.data.im, work.data.re}, work.scratch);
        scatter_columns({swapped.im, swapped.re}, length, spectrum.cols(), block, row_multiplier,
                        col_multiplier, out);
      });
}

void CpuBackend::transform_rows(ComplexMatrix& spectrum, bool inverse, int threads) const {
  const Index n = spectrum.cols();
  if (n == 1) return;
  const FftPlan& plan = FftPlan::cached(n);
  const float norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
  parallel_for(
      ceil_div(spectrum.rows(), kLanes), transform_threads(threads, spectrum.count()),
      [&] { return Workspace(plan); },
      [&](Index item, Workspace& work) {
        const Index first = item * kLanes, count = std::min(kLanes, spectrum.rows() - first);
        float* real = spectrum.real() + first * n;
        float* imag = spectrum.imag() + first * n;
        if (inverse) std::swap(real, imag);
        rows_to_lanes(real, n, count, work.data.re);
        rows_to_lanes(imag, n, count, work.data.im);
        const LaneSpan z = plan.forward(work.data, work.scratch);
        lanes_to_rows(z.re, n, count, norm, real);
        lanes_to_rows(z.im, n, count, norm, imag);
      });
}

}  // namespace llava_fa::cpu

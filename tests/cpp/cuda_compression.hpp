// Compression and its stages by the kernels of cpp/src/cuda on the host, and what their tests
// share.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cuda/compression_pipeline.hpp"
#include "cuda/stages_pipeline.hpp"
#include "host_block.hpp"
#include "reference.hpp"

namespace llava_fa::host {

inline constexpr Index kLeastShared = 99 << 10;  // shared memory of the smallest device
inline constexpr Index kMostShared = 227 << 10;  // and of large ones

inline CompressionOptions options_for(Codec codec, int code_bits, int state_bits = 9) {
  CompressionOptions options;
  options.joint.codec = codec;
  options.joint.code_bits = code_bits;
  if (codec == Codec::trellis) options.joint.state_bits = state_bits;
  return options;
}

// A weight in 16 bits as it lies on a device, rows apart from each other; `dense` becomes what it
// holds.
struct RowsApart {
  RowsApart(reference::Dense& dense, ElementType type) : type(type), stride(dense.cols + 7) {
    stored.assign(dense.rows * stride, 0x7fff);
    for (Index i = 0; i < dense.rows * dense.cols; ++i) {
      std::uint16_t* const place = &stored[i / dense.cols * stride + i % dense.cols];
      cuda::store_number(dense.values[i], type, 0, place);
      dense.values[i] = cuda::load_number(place, type, 0);
    }
  }

  cuda::Weight weight() const { return {stored.data(), type, stride}; }

  ElementType type;
  Index stride;
  std::vector<std::uint16_t> stored;
};

// A complex matrix as it lies on a device, and back.
inline std::vector<cuda::Complex> pairs(const ComplexMatrix& matrix) {
  std::vector<cuda::Complex> out;
  for (Index i = 0; i < matrix.count(); ++i) out.push_back({matrix.real()[i], matrix.imag()[i]});
  return out;
}

inline ComplexMatrix planes(const std::vector<cuda::Complex>& pairs, Index rows, Index cols) {
  ComplexMatrix out(rows, cols);
  for (Index i = 0; i < out.count(); ++i) {
    out.real()[i] = pairs[i].real;
    out.imag()[i] = pairs[i].imag;
  }
  return out;
}

// Where a test has written nothing.
inline std::vector<cuda::Complex> unwritten(Index count) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  return std::vector<cuda::Complex>(count, {kNaN, kNaN});
}

inline double norm(const ComplexMatrix& a) {
  double total = 0;
  for (Index i = 0; i < 2 * a.count(); ++i) total += std::pow(double(a.real()[i]), 2);
  return std::sqrt(total);
}

inline double distance(const ComplexMatrix& a, const ComplexMatrix& b) {
  double total = 0;
  for (Index i = 0; i < 2 * a.count(); ++i) total += std::pow(double(a.real()[i]) - b.real()[i], 2);
  return std::sqrt(total);
}

// A workspace exactly as large as asked for and not yet written.
inline std::vector<std::max_align_t> workspace_of(Index bytes) {
  REQUIRE(bytes % sizeof(std::max_align_t) == 0);
  std::vector<std::max_align_t> workspace(bytes / sizeof(std::max_align_t));
  std::memset(workspace.data(), static_cast<int>(kUnwritten), bytes);
  return workspace;
}

// As cuda::Compressor.
inline CompressionResult compressed(const cuda::Weight& weight, Index rows, Index cols,
                                    const CompressionOptions& options,
                                    const SecondMoments& moments = {},
                                    Order order = Order::ascending,
                                    Index shared_limit = kLeastShared) {
  const cuda::CompressionPlan plan(rows, cols, options, shared_limit);
  const bool fed_back = codes_with_feedback(options, moments);
  std::vector<std::max_align_t> workspace = workspace_of(plan.layout(fed_back).bytes);
  HostLauncher queue(order);
  cuda::CompressionPipeline stages(plan, fed_back, weight, workspace.data(), queue);
  return compress_weight(stages, rows, cols, options, moments);
}

inline CompressionResult compressed(const reference::Dense& w, const CompressionOptions& options,
                                    const SecondMoments& moments = {},
                                    Order order = Order::ascending,
                                    Index shared_limit = kLeastShared) {
  return compressed({w.values.data(), ElementType::float32, w.cols}, w.rows, w.cols, options,
                    moments, order, shared_limit);
}

inline double relative_error(const PackedMatrix& packed, const reference::Dense& w) {
  std::vector<float> decoded(w.values.size());
  packed.decode(decoded.data());
  return std::pow(reference::distance(decoded, w.values) / reference::norm(w.values), 2);
}

inline bool same_tensors(const PackedMatrix& a, const PackedMatrix& b) {
  for (const TensorLayout& tensor : tensor_layout(a.spec())) {
    if (!std::ranges::equal(a.tensor(tensor.name), b.tensor(tensor.name))) return false;
  }
  return a.spec() == b.spec();
}

// E[x xᵀ] of inputs whose channels go together.
struct Moments {
  explicit Moments(Index n) : diagonal(n), full(n * n) {
    const Index rows = 2 * n;
    reference::Dense x = reference::gaussian(rows, n, 100);
    for (Index b = 0; b < rows; ++b) {
      for (Index j = 1; j < n; ++j) x.values[b * n + j] += 0.8f * x.values[b * n + j - 1];
    }
    for (Index i = 0; i < n * n; ++i) {
      for (Index b = 0; b < rows; ++b) full[i] += x.at(b, i / n) * x.at(b, i % n) / float(rows);
    }
    for (Index j = 0; j < n; ++j) diagonal[j] = full[j * n + j];
  }
  SecondMoments view() const { return {diagonal, full, {}}; }

  std::vector<float> diagonal, full;
};

}  // namespace llava_fa::host

// A randomized truncated SVD as a sequence of kernels: the products with the large matrix and the
// bases on the device, the decomposition of the small triangle on the host. Twin of
// ../low_rank.cpp, whose first lines have the algorithm.
#pragma once

#include "../backend.hpp"
#include "../low_rank_internal.hpp"
#include "compression_plan.hpp"
#include "llava_fa/low_rank.hpp"
#include "llava_fa/runtime.hpp"
#include "work_memory.hpp"

namespace llava_fa::cuda {

template <class Queue>
class SubspacePipeline {
 public:
  SubspacePipeline(const SubspaceLayout& layout, const WorkMemory<Queue>& memory)
      : layout_(layout), memory_(memory) {}

  // Of a matrix whose blocks have layout.columns columns.
  TruncatedSvd decompose(const BoundedMatrix& matrix, const SvdOptions& options,
                         const ComplexMatrix* warm_start) {
    const Index columns = layout_.columns;
    const Thin basis = {memory_.template at<Complex>(layout_.basis), matrix.rows, columns};
    const Thin co_basis = {memory_.template at<Complex>(layout_.co_basis), matrix.cols, columns};
    memory_.upload(starting_block(matrix.cols, columns, options.seed, warm_start),
                   layout_.co_basis);
    memory_.multiply(Multiply{matrix, co_basis.view(), basis.entries});
    for (int pass = 0; pass < options.power_iterations; ++pass) {
      orthonormalize(basis);
      memory_.multiply(MultiplyAdjoint{matrix, basis.view(), co_basis.entries});
      orthonormalize(co_basis);
      memory_.multiply(Multiply{matrix, co_basis.view(), basis.entries});
    }
    orthonormalize(basis);
    memory_.multiply(MultiplyAdjoint{matrix, basis.view(), co_basis.entries});
    orthonormalize(co_basis);

    ComplexMatrix small_left, small_right;
    std::vector<float> values(static_cast<std::size_t>(columns));
    cpu_backend().full_svd(adjoint(triangle()), small_left, values, small_right);
    TruncatedSvd out;
    out.left_vectors = leading(basis, small_left, options.rank);
    out.right_vectors = adjoint(leading(co_basis, adjoint(small_right), options.rank));
    values.resize(static_cast<std::size_t>(options.rank));
    out.singular_values = std::move(values);
    return out;
  }

  // leftᴴ matrix (rank, matrix.cols), left (matrix.rows, rank) on the host.
  ComplexMatrix project(const BoundedMatrix& matrix, const ComplexMatrix& left) {
    const Complex* const columns = memory_.upload(left, layout_.basis);
    Complex* const out = memory_.template at<Complex>(layout_.co_basis);
    memory_.multiply(MultiplyAdjoint{matrix, {columns, left.rows(), left.cols()}, out});
    return adjoint(memory_.download(out, matrix.cols, left.cols()));
  }

 private:
  // A block of columns.
  struct Thin {
    Complex* entries;
    Index rows;
    Index cols;

    BoundedMatrix view() const { return {entries, rows, cols}; }
  };

  // By way of the spare block and back.
  void orthonormalize(const Thin& block) {
    const Thin once = {memory_.template at<Complex>(layout_.spare), block.rows, block.cols};
    triangulate(block, layout_.first_triangle, once);
    triangulate(once, layout_.second_triangle, block);
  }

  // from = to R, R to its place.
  void triangulate(const Thin& from, Index place, const Thin& to) {
    const Index columns = from.cols;
    const Gram gram = {from.entries, from.rows, columns,
                       memory_.template at<ComplexDouble>(layout_.gram)};
    memory_.queue().launch(gram, gram.tiles(), gram.tiles(), gram.shared_bytes());
    const Triangle triangle = {gram.gram, columns, memory_.template at<ComplexDouble>(place),
                               memory_.template at<Complex>(layout_.small)};
    memory_.queue().launch(triangle, 1, 1, triangle.shared_bytes());
    memory_.multiply(Multiply{from.view(), {triangle.inverse, columns, columns}, to.entries});
  }

  // R of the block orthonormalized last, which two factors make up.
  ComplexMatrix triangle() const {
    return cpu_backend().multiply(downloaded_triangle(layout_.second_triangle),
                                  downloaded_triangle(layout_.first_triangle), num_threads());
  }

  ComplexMatrix downloaded_triangle(Index place) const {
    const Index n = layout_.columns;
    const auto pairs = memory_.download(memory_.template at<ComplexDouble>(place), n * n);
    ComplexMatrix out(n, n);
    for (Index i = 0; i < n * n; ++i) {
      const ComplexDouble& pair = pairs[static_cast<std::size_t>(i)];
      const bool is_upper = i % n >= i / n;  // nothing else was written
      out.real()[i] = is_upper ? static_cast<float>(pair.real) : 0.0f;
      out.imag()[i] = is_upper ? static_cast<float>(pair.imag) : 0.0f;
    }
    return out;
  }

  // block times the first `count` columns of a small matrix, on the host.
  ComplexMatrix leading(const Thin& block, const ComplexMatrix& small, Index count) {
    const Complex* const right = memory_.upload(leading_columns(small, count), layout_.small);
    Complex* const out = memory_.template at<Complex>(layout_.spare);
    memory_.multiply(Multiply{block.view(), {right, small.rows(), count}, out});
    return memory_.download(out, block.rows, count);
  }

  const SubspaceLayout& layout_;
  const WorkMemory<Queue>& memory_;
};

}  // namespace llava_fa::cuda

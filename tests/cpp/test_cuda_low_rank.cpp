// Low rank of cpp/src/cuda, kernel after kernel on the host: products, bases, filters, and whole
// compressions against the CPU's.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "cuda_compression.hpp"
#include "llava_fa/runtime.hpp"

using namespace llava_fa;
using namespace llava_fa::host;

namespace {

using cuda::BoundedMatrix;
using cuda::ComplexDouble;

constexpr Order kOrders[] = {Order::ascending, Order::descending, Order::scattered};

struct Shape {
  Index m, n;
};

template <class Kernel>
void run_product(const Kernel& kernel, Order order) {
  HostLauncher(order).launch(kernel, kernel.grid().tiles(), 1, cuda::ProductTile::shared_bytes());
}

// Columns and triangle after one orthonormalization (decomposition.hpp).
struct Orthonormalized {
  ComplexMatrix basis, triangle;
};

Orthonormalized orthonormalized(const ComplexMatrix& columns, Order order) {
  const HostLauncher queue(order);
  const Index length = columns.rows(), count = columns.cols();
  const std::vector<cuda::Complex> given = pairs(columns);
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  std::vector<ComplexDouble> products(count * count, {kNaN, kNaN}), factor = products;
  std::vector<cuda::Complex> inverse = unwritten(count * count), basis = unwritten(length * count);
  const cuda::Gram gram = {given.data(), length, count, products.data()};
  queue.launch(gram, gram.tiles(), gram.tiles(), gram.shared_bytes());
  const cuda::Triangle triangle = {products.data(), count, factor.data(), inverse.data()};
  queue.launch(triangle, 1, 1, triangle.shared_bytes());
  run_product(
      cuda::Multiply{{given.data(), length, count}, {inverse.data(), count, count}, basis.data()},
      order);
  ComplexMatrix upper(count, count);
  for (Index i = 0; i < count * count; ++i) {
    const bool is_upper = i % count >= i / count;
    upper.real()[i] = is_upper ? static_cast<float>(factor[i].real) : 0.0f;
    upper.imag()[i] = is_upper ? static_cast<float>(factor[i].imag) : 0.0f;
  }
  return {planes(basis, length, count), std::move(upper)};
}

// ||Qᴴ Q - I||_F, columns of zeros counted as orthonormal.
double distance_from_orthonormal(const ComplexMatrix& basis) {
  const ComplexMatrix gram = cpu_backend().multiply_adjoint(basis, basis, 1);
  double total = 0;
  for (Index i = 0; i < gram.rows(); ++i) {
    for (Index j = 0; j < gram.cols(); ++j) {
      const reference::Complex entry = reference::entry(gram, i, j);
      if (i == j && entry == 0.0) continue;
      total += std::norm(entry - (i == j ? 1.0 : 0.0));
    }
  }
  return std::sqrt(total);
}

Index zero_columns(const ComplexMatrix& matrix) {
  Index zeros = 0;
  for (Index j = 0; j < matrix.cols(); ++j) {
    bool zero = true;
    for (Index i = 0; i < matrix.rows(); ++i) zero = zero && reference::entry(matrix, i, j) == 0.0;
    zeros += zero;
  }
  return zeros;
}

CompressionOptions with_rank(CompressionOptions options, Index rank, int factor_bits = 8) {
  options.joint.rank = rank;
  options.joint.factor_bits = factor_bits;
  options.joint.max_alternations = 4;
  return options;
}

}  // namespace

TEST_CASE("CUDA: products with thin matrices are the CPU's, whatever the sizes") {
  const Backend& cpu = cpu_backend();
  for (const auto& [rows, inner, cols] : {std::tuple{1, 1, 1},
                                          {31, 15, 63},
                                          {33, 17, 65},
                                          {32, 16, 64},
                                          {70, 131, 3},
                                          {5, 40, 130}}) {
    CAPTURE(rows);
    CAPTURE(inner);
    CAPTURE(cols);
    const ComplexMatrix a = reference::complex_gaussian(rows, inner, 1);
    const ComplexMatrix b = reference::complex_gaussian(inner, cols, 2);
    const ComplexMatrix c = reference::complex_gaussian(rows, cols, 3);
    const auto of_a = pairs(a), of_b = pairs(b), of_c = pairs(c);
    const BoundedMatrix left = {of_a.data(), rows, inner}, right = {of_b.data(), inner, cols};
    for (const Order order : kOrders) {
      auto out = unwritten(rows * cols);
      run_product(cuda::Multiply{left, right, out.data()}, order);
      const ComplexMatrix product = cpu.multiply(a, b, 1);
      CHECK(distance(planes(out, rows, cols), product) <= 1e-6 * reference::norm(product));

      auto adjoint = unwritten(inner * cols);
      run_product(cuda::MultiplyAdjoint{left, {of_c.data(), rows, cols}, adjoint.data()}, order);
      const ComplexMatrix expected = cpu.multiply_adjoint(a, c, 1);
      CHECK(distance(planes(adjoint, inner, cols), expected) <= 1e-6 * reference::norm(expected));

      // aᵀ c is (inner, cols); in place.
      auto rest = of_b;
      run_product(cuda::SubtractLowRank{rest.data(), left, {of_c.data(), rows, cols}, rest.data()},
                  order);
      ComplexMatrix difference(inner, cols);
      cpu.subtract_low_rank(b, a, c, 1, difference);
      CHECK(distance(planes(rest, inner, cols), difference) <= 1e-6 * reference::norm(difference));
    }
  }
}

TEST_CASE("CUDA: bases are orthonormal after two rounds and make up their columns with R") {
  for (const auto& [length, count] :
       {std::pair{1, 1}, {7, 7}, {40, 8}, {131, 9}, {200, 33}, {300, 70}}) {
    for (const float spread : {1.0f, 1e-4f}) {  // the last column relative to the first
      CAPTURE(length);
      CAPTURE(count);
      ComplexMatrix columns = reference::complex_gaussian(length, count, 4);
      // Nearly dependent: all of them like the first, but for a part that shrinks.
      for (Index i = 0; i < length; ++i) {
        for (Index j = 1; j < count; ++j) {
          const float own = std::pow(spread, float(j) / float(count - 1));
          for (float* plane : {columns.real(), columns.imag()}) {
            float& value = plane[i * count + j];
            value = own * value + (1 - own) * plane[i * count];
          }
        }
      }
      for (const Order order : kOrders) {
        const Orthonormalized once = orthonormalized(columns, order);
        const Orthonormalized twice = orthonormalized(once.basis, order);
        CHECK(distance_from_orthonormal(twice.basis) <= 1e-5);
        const ComplexMatrix triangle = cpu_backend().multiply(twice.triangle, once.triangle, 1);
        CHECK(distance(cpu_backend().multiply(twice.basis, triangle, 1), columns) <=
              2e-6 * reference::norm(columns));
      }
    }
  }
}

TEST_CASE("CUDA: columns that depend on those before become zero, and the others orthonormal") {
  constexpr Index kLength = 60, kCount = 12, kRank = 5;
  const ComplexMatrix few = reference::complex_gaussian(kLength, kRank, 5);
  const ComplexMatrix mixed =
      cpu_backend().multiply(few, reference::complex_gaussian(kRank, kCount, 6), 1);
  const Orthonormalized once = orthonormalized(mixed, Order::ascending);
  const Orthonormalized twice = orthonormalized(once.basis, Order::ascending);
  CHECK(zero_columns(twice.basis) == kCount - kRank);
  CHECK(distance_from_orthonormal(twice.basis) <= 1e-5);
  const ComplexMatrix triangle = cpu_backend().multiply(twice.triangle, once.triangle, 1);
  CHECK(distance(cpu_backend().multiply(twice.basis, triangle, 1), mixed) <=
        1e-5 * reference::norm(mixed));

  ComplexMatrix zeros(kLength, kCount);
  std::fill(zeros.real(), zeros.real() + 2 * zeros.count(), 0.0f);
  const Orthonormalized nothing = orthonormalized(zeros, Order::scattered);
  CHECK(reference::norm(nothing.basis) == 0.0);
  CHECK(reference::norm(nothing.triangle) == 0.0);
}

TEST_CASE("CUDA: rows times the feedback filter are the CPU's") {
  // One block, a whole one, a short last one.
  for (const auto [rows, n] : {Shape{1, 1}, Shape{33, 21}, Shape{40, 64}, Shape{31, 150}}) {
    const Moments moments(n);
    const FeedbackFilter filter = feedback_filter({moments.full.data(), n, n, n});
    const ComplexMatrix given = reference::complex_gaussian(rows, n, 7);
    ComplexMatrix expected = given.clone();
    cpu_backend().apply_filter(filter, 1, expected);
    for (const Order order : kOrders) {
      auto values = pairs(given);
      for (Index b = filter.block_count() - 1; b >= 0; --b) {
        const cuda::ApplyFilter kernel = {
            values.data(),
            rows,
            n,
            {filter.block(b), filter.diagonal.data(), b * FeedbackFilter::kBlock,
             static_cast<int>(filter.block_width(b))}};
        run_product(kernel, order);
      }
      CHECK(distance(planes(values, rows, n), expected) <= 2e-6 * reference::norm(expected));
    }
  }
}

TEST_CASE("CUDA: low rank and codes are found as on the CPU, with every code and weight") {
  for (const auto [m, n] : {Shape{61, 64}, Shape{130, 77}}) {
    reference::Dense w = reference::gaussian(m, n, 111);
    for (Index i = 0; i < m * n; ++i) w.values[i] += 3.0f * std::sin(0.1f * float(i / n + i % n));
    const Moments correlated(n);
    SecondMoments diagonal = correlated.view();
    diagonal.input_full = {};
    for (const auto& [codec, code_bits] : {std::pair{Codec::uniform, 6},
                                           {Codec::product, 5},
                                           {Codec::ring, 4},
                                           {Codec::trellis, 4}}) {
      for (const auto& [rank, factor_bits, unbiased] :
           {std::tuple{1, 8, true}, {5, 16, false}, {30, 8, false}}) {
        CompressionOptions options = with_rank(options_for(codec, code_bits, 8), rank, factor_bits);
        options.joint.unbiased = unbiased;
        const auto check = [&](const SecondMoments& moments, Odc odc) {
          CAPTURE(codec_name(codec));
          CAPTURE(m);
          CAPTURE(rank);
          CAPTURE(odc_name(odc));
          options.odc = odc;
          const CompressionResult expected = compress_matrix(w.view(), options, moments);
          const CompressionResult found = compressed(w, options, moments);
          CHECK(found.matrix.spec() == expected.matrix.spec());
          CHECK(found.objective[0] == doctest::Approx(expected.objective[0]).epsilon(0.01));
          CHECK(found.objective.back() == doctest::Approx(expected.objective.back()).epsilon(0.02));
          CHECK(std::ranges::is_sorted(found.objective, std::greater_equal{}));
          CHECK(relative_error(found.matrix, w) ==
                doctest::Approx(relative_error(expected.matrix, w)).epsilon(0.02));
        };
        check({}, Odc::spatial);
        check(diagonal, Odc::spectral);
        check(correlated.view(), Odc::spatial);  // error feedback
      }
    }
  }
}

TEST_CASE("CUDA: the objective is that of the decoded matrix") {
  const reference::Dense w = reference::gaussian(90, 70, 112);
  for (const int factor_bits : {6, 16}) {
    const CompressionResult found =
        compressed(w, with_rank(options_for(Codec::ring, 4), 8, factor_bits));
    CHECK(found.objective.size() >= 2);
    CHECK(relative_error(found.matrix, w) == doctest::Approx(found.objective.back()).epsilon(1e-3));
  }
}

TEST_CASE("CUDA: a low rank takes up what it can hold, from one column to all") {
  for (const auto [m, n] : {Shape{1, 1}, Shape{1, 40}, Shape{40, 1}, Shape{9, 20}, Shape{40, 12}}) {
    const reference::Dense w = reference::gaussian(m, n, 113);
    const Index most = std::min(half_rows(m), n);
    const CompressionOptions options = with_rank(options_for(Codec::ring, 4), most, 16);
    CAPTURE(m);
    CAPTURE(n);
    CHECK(relative_error(compressed(w, options).matrix, w) <= 1e-6);
  }
}

TEST_CASE("CUDA: low rank of matrices of little rank, of zeros and of any magnitude") {
  for (const Codec codec : {Codec::ring, Codec::trellis}) {
    const CompressionOptions options = with_rank(options_for(codec, 4, 8), 6);
    reference::Dense w{40, 30, std::vector<float>(1200, 0.0f)};
    std::vector<float> decoded(1200);
    const CompressionResult zero = compressed(w, options);
    zero.matrix.decode(decoded.data());
    CHECK(reference::norm(decoded) == 0.0);
    CHECK(zero.objective[0] == 0.0);
    const reference::Dense constant{40, 30, std::vector<float>(1200, -2.0f)};
    const double of_constant =
        relative_error(compress_matrix(constant.view(), options).matrix, constant);
    CHECK(relative_error(compressed(constant, options).matrix, constant) <=
          std::max(1.05 * of_constant, 1e-6));
    for (const float size : {1e-42f, 1e-30f, 1e30f, 3e37f}) {
      CAPTURE(size);
      const reference::Dense other = reference::gaussian(40, 30, 114, size);
      const double expected = relative_error(compress_matrix(other.view(), options).matrix, other);
      CHECK(relative_error(compressed(other, options).matrix, other) ==
            doctest::Approx(expected).epsilon(0.02));
    }
  }
}

TEST_CASE("CUDA: ranks beyond that of the matrix go to what the codes leave, as on the CPU") {
  // Of rank 2, so that the first bases have columns of zeros; single matrices end in other optima.
  double expected = 0, found = 0, without = 0;
  for (const int seed : {0, 1, 2, 3, 4, 5, 6, 7}) {
    reference::Dense w{40, 30, std::vector<float>(1200)};
    for (Index i = 0; i < 1200; ++i) {
      const float row = float(i / 30), column = float(i % 30);
      w.values[i] = std::cos((0.3f + 0.01f * float(seed)) * row) * column + float(i / 30 % 7);
    }
    CompressionOptions options = with_rank(options_for(Codec::ring, 4), 6);
    options.joint.seed = seed;
    expected += relative_error(compress_matrix(w.view(), options).matrix, w);
    found += relative_error(compressed(w, options).matrix, w);
    options.joint.rank = 2;
    without += relative_error(compressed(w, options).matrix, w);
  }
  CHECK(found <= 1.1 * expected);
  CHECK(found <= 0.7 * without);
}

TEST_CASE("CUDA: no bit of a low rank depends on the order of threads or on where buffers are") {
  const reference::Dense w = reference::gaussian(90, 100, 115);
  const Moments moments(100);
  for (const bool fed_back : {false, true}) {
    for (const Codec codec : {Codec::ring, Codec::trellis}) {
      const CompressionOptions options = with_rank(options_for(codec, 4, 8), 4);
      const SecondMoments given = fed_back ? moments.view() : SecondMoments{};
      const PackedMatrix expected = compressed(w, options, given).matrix;
      for (const Order order : {Order::descending, Order::scattered}) {
        CHECK(same_tensors(compressed(w, options, given, order).matrix, expected));
      }
      for (const Index limit : {Index{0}, kMostShared}) {
        CHECK(
            same_tensors(compressed(w, options, given, Order::ascending, limit).matrix, expected));
      }
    }
  }
}

TEST_CASE("CUDA: a low rank needs about as much memory as documented") {
  const auto bytes = [](Index rank, bool fed_back) {
    const CompressionOptions options = with_rank(options_for(Codec::ring, 8), rank);
    return cuda::CompressionPlan(4096, 4096, options, kMostShared).layout(fed_back).bytes;
  };
  constexpr Index kWeights = Index{4096} * 4096;
  for (const bool fed_back : {false, true}) {
    const Index more = bytes(64, fed_back) - bytes(0, fed_back);
    CHECK(more <= 5 * kWeights + 64 * 3 * 4096 * 16);
  }
}

// Transforms of cpp/src/cuda on the host: against the definition in double precision, and back.
#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "cuda/spectrum.hpp"
#include "host_block.hpp"
#include "reference.hpp"

using namespace llava_fa;
using host::Order;

namespace {

// Ones, powers of two, every radix, dense primes (43, 61), chirps (67, 127, 2 · 269, 1021), odd and
// even, and mixtures.
constexpr Index kLengths[] = {1,  2,  3,  4,  5,   6,   7,   8,   9,   11,  16,  25,  30,   43,  61,
                              64, 67, 86, 96, 127, 134, 250, 344, 512, 538, 720, 769, 1021, 1152};

// A real transform's constants in place, and room for its buffers.
struct Transform {
  explicit Transform(Index n) : Transform(n, cuda::ConstantsBuilder()) {}
  Transform(Index n, cuda::ConstantsBuilder builder)
      : tables(n, builder), constants(builder.take()) {}

  Index shared_bytes() const {
    return 2 * tables.buffer_elements() * static_cast<Index>(sizeof(cuda::Complex));
  }

  cuda::RealFftTables tables;
  std::vector<std::byte> constants;
};

// Spectra of the rows of x, all columns; buffers in shared memory, or in the workspace of two
// blocks.
std::vector<cuda::Complex> spectra(const reference::Dense& x, Order order, bool in_workspace) {
  const Transform transform(x.cols);
  const std::vector<float> ones(x.cols, 1.0f);
  const Index pitch = (x.cols + 7) / 8 * 8, elements = transform.tables.buffer_elements();
  std::vector<cuda::Complex> out(x.rows * pitch), workspace(4 * elements);
  cuda::SpectrumKernel kernel = {};
  kernel.plan = transform.tables.at(transform.constants.data());
  kernel.buffers = {in_workspace ? workspace.data() : nullptr, elements};
  kernel.activations = x.values.data();
  kernel.type = ElementType::float32;
  kernel.row_stride = x.cols;
  kernel.multiplier = ones.data();
  kernel.spectrum = out.data();
  kernel.pitch = pitch;
  kernel.tokens = x.rows;
  const host::HostLauncher launcher(order);
  if (in_workspace) {
    launcher.launch(kernel, 2, 1, 0);
  } else {
    launcher.launch(kernel, x.rows, 1, transform.shared_bytes());
  }
  return out;
}

std::vector<float> back(const std::vector<cuda::Complex>& spectra, const reference::Dense& x) {
  const Index n = x.cols, rows = n / 2 + 1, pitch = static_cast<Index>(spectra.size()) / x.rows;
  const Transform transform(n);
  // The half spectrum with Parseval weights, in two parts of half the size.
  std::vector<float> parts(2 * x.rows * 2 * rows), ones(n, 1.0f), out(x.rows * n);
  for (Index part = 0; part < 2; ++part) {
    for (Index b = 0; b < x.rows; ++b) {
      for (Index k = 0; k < rows; ++k) {
        const float weight = k == 0 || 2 * k == n ? 0.5f : 0.5f * std::numbers::sqrt2_v<float>;
        float* line = parts.data() + (part * x.rows + b) * 2 * rows;
        line[k] = weight * spectra[b * pitch + k].real;
        line[rows + k] = -weight * spectra[b * pitch + k].imag;
      }
    }
  }
  cuda::InverseSpectrumKernel kernel = {};
  kernel.plan = transform.tables.at(transform.constants.data());
  kernel.buffers = {nullptr, transform.tables.buffer_elements()};
  kernel.parts = parts.data();
  kernel.part_count = 2;
  kernel.tokens = x.rows;
  kernel.multiplier = ones.data();
  kernel.output = out.data();
  kernel.type = ElementType::float32;
  host::HostLauncher().launch(kernel, x.rows, 1, transform.shared_bytes());
  return out;
}

}  // namespace

TEST_CASE("CUDA: spectra of activations equal their definition in double precision") {
  for (const Index n : kLengths) {
    CAPTURE(n);
    const reference::Dense x = reference::gaussian(2, n, 81);
    const std::vector<cuda::Complex> found = spectra(x, Order::ascending, false);
    const Index pitch = static_cast<Index>(found.size()) / 2;
    double error = 0, energy = 0;
    for (Index b = 0; b < 2; ++b) {
      for (Index l = 0; l < n; ++l) {
        reference::Complex expected;
        for (Index j = 0; j < n; ++j) expected += double(x.at(b, j)) * reference::root(j * l, n);
        expected = std::conj(expected) / std::sqrt(double(n));
        const cuda::Complex entry = found[b * pitch + l];
        error += std::norm(expected - reference::Complex(entry.real, entry.imag));
        energy += std::norm(expected);
      }
      for (Index l = n; l < pitch; ++l) {
        CHECK(found[b * pitch + l].real == 0.0f);
        CHECK(found[b * pitch + l].imag == 0.0f);
      }
    }
    CHECK(std::sqrt(error / energy) <= 1e-6);
  }
}

TEST_CASE("CUDA: the inverse transform adds parts up and gives the activations back") {
  for (const Index n : kLengths) {
    CAPTURE(n);
    const reference::Dense x = reference::gaussian(2, n, 82);
    const std::vector<float> found = back(spectra(x, Order::ascending, false), x);
    CHECK(reference::distance(x.values, found) <= 1e-6 * reference::norm(x.values));
  }
}

TEST_CASE("CUDA: transforms depend neither on the order of threads nor on where buffers are") {
  for (const Index n : {1, 7, 64, 134, 720, 1021}) {
    CAPTURE(n);
    const reference::Dense x = reference::gaussian(3, n, 83);
    const std::vector<cuda::Complex> expected = spectra(x, Order::ascending, false);
    const auto same = [&](const std::vector<cuda::Complex>& found) {
      return std::memcmp(found.data(), expected.data(), found.size() * sizeof(found[0])) == 0;
    };
    CHECK(same(spectra(x, Order::descending, false)));
    CHECK(same(spectra(x, Order::scattered, false)));
    CHECK(same(spectra(x, Order::scattered, true)));
  }
}

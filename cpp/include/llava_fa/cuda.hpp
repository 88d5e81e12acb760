// Compression, its stages, and products with packed matrices on NVIDIA GPUs (docs/cuda.md).
//
// The CUDA part is a shared library of its own beside this one, loaded on first use; a program that
// links this library needs neither a GPU nor a driver. It allocates no device memory: callers give
// it, from an allocator of their own, and everything runs on their stream.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "llava_fa/calibration.hpp"
#include "llava_fa/low_rank.hpp"
#include "llava_fa/matmul.hpp"
#include "llava_fa/packed_matrix.hpp"

namespace llava_fa {

class DeviceProduct;  // internal
class DeviceCompressor;
class DeviceStages;

namespace cuda {

// Why GPUs cannot be used here, and what to do about it; nothing if they can. Never throws.
std::optional<std::string> unavailable_reason();

// GPUs that the driver shows; 0 if there is a reason above. A Product and a Compressor say whether
// one is too old.
int device_count();

// x (rows, n) in device memory; row_stride elements from one row to the next, >= n.
struct Activations {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  Index rows = 0;
  Index row_stride = 0;
};

// y (rows, m) in device memory, contiguous; rounded once, to its type.
struct Output {
  void* data = nullptr;
  ElementType type = ElementType::float32;
};

// What a product reads and overwrites besides, in memory of its device and aligned to kAlignment.
struct DeviceMemory {
  const void* codes = nullptr;      // the stored tensor, as it is in the file
  const void* constants = nullptr;  // a copy of Product::constants()
  void* workspace = nullptr;  // Product::workspace_bytes(); products on one stream may share it
};
inline constexpr Index kAlignment = 16;

// The product y = x Wᵀ with one matrix on one GPU. Immutable, so threads and streams may share it.
class Product {
 public:
  // Throws Error(device) if the GPU cannot be used, saying why; Error(invalid_argument) if the
  // device is not 0 .. device_count() - 1. The matrix need not outlive the product.
  Product(const PackedMatrix& matrix, int device);

  const MatrixSpec& spec() const;
  int device() const;

  // All that products need besides the codes: multipliers, scales, points, tables of the
  // transforms, low-rank factors in float32. About 14 (m + n) bytes, more where m or n has a prime
  // factor above 61, and 8 rank (m / 2 + n). To be copied to device memory once.
  std::span<const std::byte> constants() const;

  // Of a product with so many activations; grows with them up to 2,048.
  Index workspace_bytes(Index activations, Precision precision) const;

  // Queues the product on a stream of the device: `stream` is a cudaStream_t, null for the default
  // stream. Returns at once, allocates nothing and may be captured into a graph. Up to 4
  // activations are multiplied with the codes themselves, in float32; more with decoded panels on
  // tensor cores, to 1e-5 at single precision and to 1e-3 at half. Deterministic: equal input gives
  // equal bits on equal GPUs. Sums depend on how many activations there are.
  // Throws Error(invalid_argument) for null or misaligned pointers, a row_stride below n and more
  // than kMaxChannels activations,
  // Error(device) if the GPU reports an error.
  void multiply(const DeviceMemory& memory, const Activations& activations, const Output& output,
                Precision precision, void* stream) const;

 private:
  MatrixSpec spec_;
  int device_;
  std::shared_ptr<const DeviceProduct> product_;
};

// A dense weight (m, n) in device memory; row_stride elements from one row to the next, >= n.
struct Weight {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  Index row_stride = 0;
};

// Device memory that a compression overwrites, aligned to kAlignment.
struct Workspace {
  void* data = nullptr;
  Index bytes = 0;
};

// compress_matrix() of weights of one shape with one set of options on one GPU. Immutable, so
// threads and streams may share it.
class Compressor {
 public:
  // Throws Error(invalid_argument) if an option is out of range and if the device is not
  // 0 .. device_count() - 1; Error(device) if the GPU cannot be used, saying why.
  Compressor(Index rows, Index cols, const CompressionOptions& options, int device);

  int device() const { return device_; }

  // Bytes that compress() needs: about 6 per weight, and for the trellis up to 256 MiB more. With a
  // full second moment, which asks for error feedback unless the options do not, 10 per weight and
  // 4 n^2 for the filter, at least 16 n^2 for its factorization, and for the trellis up to
  // (m / 2 + 256) 2^(state_bits - code_bits). With a rank, 5 more per weight and about
  // 24 (rank + 10) (m / 2 + n) + 56 (rank + 10)^2.
  Index workspace_bytes(bool full_moment) const;

  // Runs on a stream of the device, a cudaStream_t or null for the default one, and waits for it.
  // Moments are in the host's memory; the small and the stored parts of a low rank are found there.
  // Deterministic: equal input gives equal bits on equal GPUs, with a rank where the CPU's variant
  // is the same too. Against the CPU's result, entries halfway between two points may go either
  // way, and with them what the trellis or the feedback makes of those after them.
  // Throws as compress_matrix(); Error(invalid_argument) for null or misaligned pointers, a
  // workspace that is too small and a row_stride below n; Error(device) if the GPU reports an
  // error.
  CompressionResult compress(const Weight& weight, const SecondMoments& moments,
                             const Workspace& workspace, void* stream) const;

 private:
  Index rows_, cols_;
  CompressionOptions options_;
  int device_;
  std::shared_ptr<const DeviceCompressor> compressor_;
};

// The stages between weights of one shape and their codes on one GPU, each by itself: what
// spectrum.hpp, low_rank.hpp, polar_codec.hpp and trellis.hpp have for the CPU. Immutable, so
// threads and streams may share it.
//
// Complex matrices lie in device memory as pairs of float32, row after row: half spectra of weights
// (m, n) are (m / 2 + 1, n), and so are what is decomposed, encoded and decoded. Every function
// runs on a stream of the device, a cudaStream_t or null for the default one, waits for it, and
// throws Error(invalid_argument) for null or misaligned pointers and a workspace that is too small;
// Error(device) if the GPU reports an error. Deterministic, as Compressor is.
class Stages {
 public:
  // Of weights (rows, cols), with the codec, bits and rank of `options`. Throws as Compressor's,
  // but a trellis may have as few state bits as trellis() takes.
  Stages(Index rows, Index cols, const CompressionOptions& options, Index oversampling, int device);

  int device() const { return device_; }

  // Bytes that each function but dense() needs: about 6 per weight, more for the trellis and with a
  // rank, as a Compressor's; and for transforms that are too long for shared memory up to 256 pairs
  // of buffers.
  Index workspace_bytes() const;
  // Bytes that dense() needs: about 4 per weight, and the buffers of such transforms.
  Index dense_workspace_bytes() const;

  // As llava_fa::diagonal_scales() of the weight's energies; moments are in the host's memory.
  DiagonalScales diagonal_scales(const Weight& weight, const SecondMoments& moments,
                                 const Workspace& workspace, void* stream) const;

  void half_spectrum(const Weight& weight, void* spectrum, const Workspace& workspace,
                     void* stream) const;
  // To (rows, cols) float32, contiguous.
  void inverse_half_spectrum(const void* spectrum, float* weight, const Workspace& workspace,
                             void* stream) const;

  // As randomized_svd(), with the options' rank; the result and the warm start are in the host's
  // memory. Throws Error(invalid_argument) if the rank is 0 and as randomized_svd() does.
  TruncatedSvd truncated_svd(const void* matrix, int power_iterations, std::uint64_t seed,
                             const ComplexMatrix* warm_start, const Workspace& workspace,
                             void* stream) const;

  // As polar_encode() or trellis_encode(); codes come to the host. Throws as these.
  PolarCodes encode(const void* values, const Workspace& workspace, void* stream) const;
  // Codes are in device memory, binary16 row scales (rows / 2 + 1) in the host's.
  void decode(const void* codes, std::span<const std::uint16_t> row_scale, void* values,
              const Workspace& workspace, void* stream) const;

  // As PackedMatrix::decode(), of a matrix with the shape and the options of these stages whose
  // codes are in device memory; to (rows, cols) float32, contiguous.
  void dense(const PackedMatrix& matrix, const void* codes, float* weight,
             const Workspace& workspace, void* stream) const;

 private:
  Index rows_, cols_;
  CompressionOptions options_;
  Index oversampling_;
  int device_;
  std::shared_ptr<const DeviceStages> stages_;
};

}  // namespace cuda
}  // namespace llava_fa

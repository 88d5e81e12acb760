// Internal contract: what the CUDA part owes to the library. Built from cuda/ into a shared object
// of its own with one exported symbol, llava_fa_device_backend.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "llava_fa/cuda.hpp"
#include "weight_stages.hpp"

namespace llava_fa {

// One matrix on one device; semantics in llava_fa/cuda.hpp. Arguments are checked by the caller.
class DeviceProduct {
 public:
  virtual ~DeviceProduct() = default;
  virtual std::span<const std::byte> constants() const = 0;
  virtual Index workspace_bytes(Index activations, Precision precision) const = 0;
  virtual void multiply(const cuda::DeviceMemory& memory, const cuda::Activations& activations,
                        const cuda::Output& output, Precision precision, void* stream) const = 0;
};

// Matrices of one shape and set of options on one device.
class DeviceCompressor {
 public:
  virtual ~DeviceCompressor() = default;
  virtual Index workspace_bytes(bool fed_back) const = 0;
  // Until they are gone, the device is the thread's current one.
  virtual std::unique_ptr<WeightStages> stages(bool fed_back, const cuda::Weight& weight,
                                               void* workspace, void* stream) const = 0;
};

// What cuda::Stages does, in a workspace and on a stream. Arguments are checked by the caller; each
// function waits for what it queues.
class StageByStage {
 public:
  virtual ~StageByStage() = default;
  virtual ChannelEnergies energies(const cuda::Weight& weight) = 0;
  virtual void half_spectrum(const cuda::Weight& weight, void* spectrum) = 0;
  virtual void inverse_half_spectrum(const void* spectrum, float* weight) = 0;
  virtual TruncatedSvd truncated_svd(const void* matrix, const SvdOptions& options,
                                     const ComplexMatrix* warm_start) = 0;
  virtual PolarCodes encode(const void* values) = 0;
  virtual void decode(const void* codes, std::span<const std::uint16_t> row_scale,
                      void* values) = 0;
  virtual void dense(const PackedMatrix& matrix, const void* codes, float* weight) = 0;
};

// Stages of matrices of one shape and set of options on one device.
class DeviceStages {
 public:
  virtual ~DeviceStages() = default;
  // Of dense(), or of every other function.
  virtual Index workspace_bytes(bool dense) const = 0;
  // Until they are gone, the device is the thread's current one.
  virtual std::unique_ptr<StageByStage> open(bool dense, void* workspace, void* stream) const = 0;
};

class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;
  // Empty if devices can be used.
  virtual std::string unavailable_reason() const = 0;
  virtual int device_count() const = 0;
  virtual std::shared_ptr<const DeviceProduct> product(const PackedMatrix& matrix,
                                                       int device) const = 0;
  virtual std::shared_ptr<const DeviceCompressor> compressor(Index rows, Index cols,
                                                             const CompressionOptions& options,
                                                             int device) const = 0;
  virtual std::shared_ptr<const DeviceStages> stages(Index rows, Index cols,
                                                     const CompressionOptions& options,
                                                     Index oversampling, int device) const = 0;
};

}  // namespace llava_fa

// The CUDA part's entry point: which devices can be used, products on them, and the errors of both.
#include <cuda_runtime_api.h>

#include <memory>

#include "../checks.hpp"
#include "../device_backend.hpp"
#include "launch.hpp"
#include "product_pipeline.hpp"

namespace llava_fa::cuda {

namespace {

const char* remedy(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return "multiply fewer activations at once, or free memory of the GPU";
    case cudaErrorNoKernelImageForDevice:
      return "build llava-fa with -DLLAVA_FA_CUDA_ARCHITECTURES=native";
    default: return "if it persists, restart the process";
  }
}

}  // namespace

void require_success(cudaError_t status, const char* what) {
  // Else the next launch, which asks for the last error, would report this one again.
  if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
  require(status == cudaSuccess, ErrorCode::device, what, ": ", cudaGetErrorString(status), " (",
          cudaGetErrorName(status), "): ", remedy(status));
}

namespace {

constexpr int kLeastCapability = 8;  // compute capability 8.0

// Makes a device the current one, and the one before again.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    require_success(cudaGetDevice(&before_), "asking for the current GPU");
    if (before_ == device) return;
    require_success(cudaSetDevice(device), "choosing a GPU");
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  require_success(cudaDeviceGetAttribute(&value, which, device), "asking for a GPU's limits");
  return value;
}

std::string version(int encoded) { return concat(encoded / 1000, ".", encoded % 1000 / 10); }

class StreamLauncher {
 public:
  explicit StreamLauncher(cudaStream_t stream) : stream_(stream) {}

  template <class Kernel>
  void launch(const Kernel& kernel, Index grid_x, Index grid_y, Index shared_bytes) const {
    cuda::launch(kernel, grid_x, grid_y, shared_bytes, stream_);
  }

 private:
  cudaStream_t stream_;
};

// Prepares what a pipeline launches.
class KernelLoader {
 public:
  explicit KernelLoader(Index shared_limit) : shared_limit_(shared_limit) {}

  template <class Kernel>
  void launch(const Kernel& kernel, Index, Index, Index shared_bytes) const {
    prepare(kernel, shared_bytes, shared_limit_);
  }

 private:
  Index shared_limit_;
};

class CudaProduct final : public DeviceProduct {
 public:
  CudaProduct(const PackedMatrix& matrix, int device)
      : device_(device),
        shared_limit_(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
        plan_(matrix, shared_limit_) {
    for (const Precision precision : {Precision::single, Precision::half}) {
      for (const Index tokens : {Index{1}, kMostVectors + 1}) load_kernels(tokens, precision);
    }
  }

  std::span<const std::byte> constants() const override { return plan_.constants(); }

  Index workspace_bytes(Index activations, Precision precision) const override {
    return plan_.workspace_bytes(activations, precision);
  }

  void multiply(const DeviceMemory& memory, const Activations& activations, const Output& output,
                Precision precision, void* stream) const override {
    const CurrentDevice current(device_);
    const StreamLauncher launcher(static_cast<cudaStream_t>(stream));
    ProductPipeline pipeline(plan_, memory, precision, launcher);
    pipeline.multiply(activations, output);
  }

 private:
  // Goes through a product without running it; nothing reads the addresses.
  void load_kernels(Index tokens, Precision precision) const {
    const CurrentDevice current(device_);
    const KernelLoader loader(shared_limit_);
    const auto workspace = std::make_unique_for_overwrite<std::byte[]>(
        static_cast<std::size_t>(plan_.workspace_bytes(tokens, precision)));
    const DeviceMemory memory = {plan_.constants().data(), plan_.constants().data(),
                                 workspace.get()};
    ProductPipeline pipeline(plan_, memory, precision, loader);
    pipeline.multiply({workspace.get(), ElementType::float32, tokens, plan_.spec().cols},
                      {workspace.get(), ElementType::float32});
  }

  int device_;
  Index shared_limit_;
  ProductPlan plan_;
};

class CudaBackend final : public DeviceBackend {
 public:
  std::string unavailable_reason() const override {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
      return "no NVIDIA driver was found: install one, or compute on the CPU";
    }
    if (driver / 1000 < CUDART_VERSION / 1000) {
      return concat("the NVIDIA driver supports CUDA ", version(driver), ", this library needs ",
                    version(CUDART_VERSION), ": update the driver, or compute on the CPU");
    }
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
      static_cast<void>(cudaGetLastError());
      return "no GPU is visible: look at nvidia-smi and at CUDA_VISIBLE_DEVICES";
    }
    if (status != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return concat("the NVIDIA driver reports \"", cudaGetErrorString(status),
                    "\": look at nvidia-smi, or compute on the CPU");
    }
    return {};
  }

  int device_count() const override {
    int count = 0;
    require_success(cudaGetDeviceCount(&count), "counting GPUs");
    return count;
  }

  std::shared_ptr<const DeviceProduct> product(const PackedMatrix& matrix,
                                               int device) const override {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    require(major >= kLeastCapability, ErrorCode::device, "GPU ", device,
            " has compute capability ", major, ".",
            attribute(cudaDevAttrComputeCapabilityMinor, device), ", expected ", kLeastCapability,
            ".0 or newer: choose another GPU, or compute on the CPU");
    return std::make_shared<CudaProduct>(matrix, device);
  }
};

}  // namespace
}  // namespace llava_fa::cuda

extern "C" __attribute__((visibility("default"))) const llava_fa::DeviceBackend*
llava_fa_device_backend() {
  static const llava_fa::cuda::CudaBackend backend;
  return &backend;
}

// The CUDA part's entry point: which devices can be used, products, compression and its stages on
// them, and the errors of all that.
#include <cuda_runtime_api.h>

#include <memory>

#include "../checks.hpp"
#include "../device_backend.hpp"
#include "compression_pipeline.hpp"
#include "launch.hpp"
#include "product_pipeline.hpp"
#include "stages_pipeline.hpp"

namespace llava_fa::cuda {

namespace {

const char* remedy(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation: return "compute with less at once, or free memory of the GPU";
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

Index shared_limit(int device) {
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
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
      : device_(device), shared_limit_(shared_limit(device)), plan_(matrix, shared_limit_) {
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

// Runs a pipeline's kernels and copies on a stream.
class StreamQueue {
 public:
  StreamQueue(Index shared_limit, void* stream)
      : shared_limit_(shared_limit), stream_(static_cast<cudaStream_t>(stream)) {}

  template <class Kernel>
  void launch(const Kernel& kernel, Index grid_x, Index grid_y, Index shared_bytes) const {
    prepare(kernel, shared_bytes, shared_limit_);
    cuda::launch(kernel, grid_x, grid_y, shared_bytes, stream_);
  }

  // Returns when the bytes have been read, as the caller's may go then.
  void upload(void* to, std::span<const std::byte> bytes) const {
    require_success(
        cudaMemcpyAsync(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream_),
        "copying to the GPU");
    wait();
  }

  void download(const void* from, std::span<std::byte> bytes) const {
    require_success(
        cudaMemcpyAsync(bytes.data(), from, bytes.size(), cudaMemcpyDeviceToHost, stream_),
        "copying from the GPU");
    wait();
  }

  void wait() const { require_success(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

 private:
  Index shared_limit_;
  cudaStream_t stream_;
};

// A device as the current one, and one of its streams.
class OnStream {
 protected:
  OnStream(int device, Index shared_limit, void* stream)
      : current_(device),
        queue_(shared_limit, stream),
        stream_(static_cast<cudaStream_t>(stream)) {}
  // After an error kernels may still run, in the caller's memory.
  ~OnStream() { static_cast<void>(cudaStreamSynchronize(stream_)); }

 private:
  CurrentDevice current_;

 protected:
  StreamQueue queue_;

 private:
  cudaStream_t stream_;
};

class CudaWeightStages final : private OnStream, public CompressionPipeline<StreamQueue> {
 public:
  CudaWeightStages(const CompressionPlan& plan, bool fed_back, const Weight& weight,
                   void* workspace, void* stream, int device)
      : OnStream(device, plan.shared_limit(), stream),
        CompressionPipeline(plan, fed_back, weight, workspace, queue_) {}
};

class CudaStageByStage final : private OnStream, public StagesPipeline<StreamQueue> {
 public:
  CudaStageByStage(const CompressionPlan& plan, const CompressionPlan::Layout& layout,
                   void* workspace, void* stream, int device)
      : OnStream(device, plan.shared_limit(), stream),
        StagesPipeline(plan, layout, workspace, queue_) {}
};

class CudaCompressor final : public DeviceCompressor {
 public:
  CudaCompressor(Index rows, Index cols, const CompressionOptions& options, int device)
      : device_(device), plan_(rows, cols, options, shared_limit(device)) {}

  Index workspace_bytes(bool fed_back) const override { return plan_.layout(fed_back).bytes; }

  std::unique_ptr<WeightStages> stages(bool fed_back, const Weight& weight, void* workspace,
                                       void* stream) const override {
    return std::make_unique<CudaWeightStages>(plan_, fed_back, weight, workspace, stream, device_);
  }

 private:
  int device_;
  CompressionPlan plan_;
};

class CudaStages final : public DeviceStages {
 public:
  CudaStages(Index rows, Index cols, const CompressionOptions& options, Index oversampling,
             int device)
      : device_(device), plan_(rows, cols, options, shared_limit(device), oversampling) {}

  Index workspace_bytes(bool dense) const override { return layout(dense).bytes; }

  std::unique_ptr<StageByStage> open(bool dense, void* workspace, void* stream) const override {
    return std::make_unique<CudaStageByStage>(plan_, layout(dense), workspace, stream, device_);
  }

 private:
  CompressionPlan::Layout layout(bool dense) const {
    return dense ? plan_.decoding_layout() : plan_.stage_layout();
  }

  int device_;
  CompressionPlan plan_;
};

void require_capability(int device) {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  require(major >= kLeastCapability, ErrorCode::device, "GPU ", device, " has compute capability ",
          major, ".", attribute(cudaDevAttrComputeCapabilityMinor, device), ", expected ",
          kLeastCapability, ".0 or newer: choose another GPU, or compute on the CPU");
}

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
    require_capability(device);
    return std::make_shared<CudaProduct>(matrix, device);
  }

  std::shared_ptr<const DeviceCompressor> compressor(Index rows, Index cols,
                                                     const CompressionOptions& options,
                                                     int device) const override {
    require_capability(device);
    return std::make_shared<CudaCompressor>(rows, cols, options, device);
  }

  std::shared_ptr<const DeviceStages> stages(Index rows, Index cols,
                                             const CompressionOptions& options, Index oversampling,
                                             int device) const override {
    require_capability(device);
    return std::make_shared<CudaStages>(rows, cols, options, oversampling, device);
  }
};

}  // namespace
}  // namespace llava_fa::cuda

extern "C" __attribute__((visibility("default"))) const llava_fa::DeviceBackend*
llava_fa_device_backend() {
  static const llava_fa::cuda::CudaBackend backend;
  return &backend;
}

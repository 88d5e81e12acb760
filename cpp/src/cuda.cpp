// Compression and products on GPUs: loads the CUDA part, checks arguments and hands over to it.
#include "llava_fa/cuda.hpp"

#include <cstdint>

#include "checks.hpp"
#include "device_backend.hpp"
#include "llava_fa/constellation.hpp"
#include "module_loading.hpp"

namespace llava_fa::cuda {
namespace {

struct Loaded {
  const DeviceBackend* backend = nullptr;
  std::string reason;  // why there is none
};

Loaded load() {
  const std::filesystem::path file = module_file("cuda");
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) {
    return {nullptr, concat("this llava-fa was built without its CUDA part (", file.string(),
                            " is missing): build it with -DLLAVA_FA_CUDA=ON where nvcc is "
                            "installed, or compute on the CPU")};
  }
  try {
    using Entry = const DeviceBackend* (*)();
    return {reinterpret_cast<Entry>(load_entry(file, "llava_fa_device_backend"))(), {}};
  } catch (const Error& error) {
    return {nullptr, concat(error.what(), ": reinstall llava-fa, or compute on the CPU")};
  }
}

const Loaded& loaded() {
  static const Loaded result = load();
  return result;
}

const DeviceBackend& backend() {
  const std::optional<std::string> reason = unavailable_reason();
  require(!reason, ErrorCode::device, "no GPU can be used: ", reason.value_or(""));
  return *loaded().backend;
}

bool aligned(const void* pointer, Index alignment) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(alignment) == 0;
}

void require_pointer(const void* pointer, Index alignment, const char* name) {
  require_argument(pointer != nullptr, name, " is null");
  require_argument(aligned(pointer, alignment), name, " is not aligned to ", alignment,
                   " bytes: copy it to an allocation of its own");
}

void require_device(const DeviceBackend& devices, int device) {
  const int count = devices.device_count();
  require_argument(device >= 0 && device < count, "device is ", device, ", expected 0 to ",
                   count - 1);
}

}  // namespace

std::optional<std::string> unavailable_reason() {
  const Loaded& result = loaded();
  if (result.backend == nullptr) return result.reason;
  std::string reason = result.backend->unavailable_reason();
  if (reason.empty()) return std::nullopt;
  return reason;
}

int device_count() { return unavailable_reason() ? 0 : loaded().backend->device_count(); }

Product::Product(const PackedMatrix& matrix, int device) : spec_(matrix.spec()), device_(device) {
  const DeviceBackend& devices = backend();
  require_device(devices, device);
  product_ = devices.product(matrix, device);
}

const MatrixSpec& Product::spec() const { return spec_; }

int Product::device() const { return device_; }

std::span<const std::byte> Product::constants() const { return product_->constants(); }

Index Product::workspace_bytes(Index activations, Precision precision) const {
  require_argument(activations >= 0, "the number of activations is ", activations);
  return product_->workspace_bytes(activations, precision);
}

void Product::multiply(const DeviceMemory& memory, const Activations& activations,
                       const Output& output, Precision precision, void* stream) const {
  require_argument(activations.rows >= 0 && activations.rows <= kMaxChannels,
                   "the number of activations is ", activations.rows, ", expected 0 to ",
                   kMaxChannels);
  require_argument(activations.row_stride >= spec_.cols, "activations have row_stride ",
                   activations.row_stride, ", expected at least their width ", spec_.cols);
  if (activations.rows == 0) return;
  require_pointer(memory.codes, kAlignment, "codes");
  require_pointer(memory.constants, kAlignment, "constants");
  require_pointer(memory.workspace, kAlignment, "workspace");
  require_pointer(activations.data, item_bytes(activations.type), "activations");
  require_pointer(output.data, item_bytes(output.type), "output");
  product_->multiply(memory, activations, output, precision, stream);
}

Compressor::Compressor(Index rows, Index cols, const CompressionOptions& options, int device)
    : rows_(rows), cols_(cols), options_(options), device_(device) {
  validate(spec_of(rows, cols, options));
  validate(options.joint);
  const DeviceBackend& devices = backend();
  require_device(devices, device);
  compressor_ = devices.compressor(rows, cols, options, device);
}

Index Compressor::workspace_bytes(bool full_moment) const {
  return compressor_->workspace_bytes(options_.feedback && full_moment);
}

CompressionResult Compressor::compress(const Weight& weight, const SecondMoments& moments,
                                       const Workspace& workspace, void* stream) const {
  const Index needed = workspace_bytes(!moments.input_full.empty());
  require_argument(weight.row_stride >= cols_, "the weight has row_stride ", weight.row_stride,
                   ", expected at least its width ", cols_);
  require_pointer(weight.data, item_bytes(weight.type), "weight");
  require_pointer(workspace.data, kAlignment, "workspace");
  require_argument(workspace.bytes >= needed, "the workspace has ", workspace.bytes,
                   " bytes, expected at least ", needed);
  const std::unique_ptr<WeightStages> stages =
      compressor_->stages(codes_with_feedback(options_, moments), weight, workspace.data, stream);
  return compress_weight(*stages, rows_, cols_, options_, moments);
}

}  // namespace llava_fa::cuda

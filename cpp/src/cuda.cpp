// Compression, its stages and products on GPUs: loads the CUDA part, checks arguments and hands
// over to it.
#include "llava_fa/cuda.hpp"

#include <cstdint>

#include "checks.hpp"
#include "device_backend.hpp"
#include "llava_fa/constellation.hpp"
#include "llava_fa/spectrum.hpp"
#include "llava_fa/trellis.hpp"
#include "low_rank_internal.hpp"
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

void require_workspace(const Workspace& workspace, Index needed) {
  require_pointer(workspace.data, kAlignment, "workspace");
  require_argument(workspace.bytes >= needed, "the workspace has ", workspace.bytes,
                   " bytes, expected at least ", needed);
}

void require_weight(const Weight& weight, Index cols) {
  require_argument(weight.row_stride >= cols, "the weight has row_stride ", weight.row_stride,
                   ", expected at least its width ", cols);
  require_pointer(weight.data, item_bytes(weight.type), "weight");
}

// Pairs of float32.
void require_complex(const void* pointer, const char* name) { require_pointer(pointer, 8, name); }

void require_device(const DeviceBackend& devices, int device) {
  const int count = devices.device_count();
  require_argument(device >= 0 && device < count, "device is ", device, ", expected 0 to ",
                   count - 1);
}

// Single stages are of whatever codes there are: states may be shorter than a matrix' are.
void validate_stages(MatrixSpec spec) {
  if (spec.codec == Codec::trellis) {
    trellis(spec.code_bits, spec.state_bits);
    spec.state_bits = std::max(spec.state_bits, kMinStateBits);
  }
  validate(spec);
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
  require_weight(weight, cols_);
  require_workspace(workspace, workspace_bytes(!moments.input_full.empty()));
  const std::unique_ptr<WeightStages> stages =
      compressor_->stages(codes_with_feedback(options_, moments), weight, workspace.data, stream);
  return compress_weight(*stages, rows_, cols_, options_, moments);
}

Stages::Stages(Index rows, Index cols, const CompressionOptions& options, Index oversampling,
               int device)
    : rows_(rows), cols_(cols), options_(options), oversampling_(oversampling), device_(device) {
  validate_stages(spec_of(rows, cols, options));
  check_subspace(0, oversampling, nullptr, cols);
  const DeviceBackend& devices = backend();
  require_device(devices, device);
  stages_ = devices.stages(rows, cols, options, oversampling, device);
}

Index Stages::workspace_bytes() const { return stages_->workspace_bytes(/*dense=*/false); }

Index Stages::dense_workspace_bytes() const { return stages_->workspace_bytes(/*dense=*/true); }

DiagonalScales Stages::diagonal_scales(const Weight& weight, const SecondMoments& moments,
                                       const Workspace& workspace, void* stream) const {
  require_weight(weight, cols_);
  require_workspace(workspace, workspace_bytes());
  return llava_fa::diagonal_scales(
      stages_->open(/*dense=*/false, workspace.data, stream)->energies(weight), moments);
}

void Stages::half_spectrum(const Weight& weight, void* spectrum, const Workspace& workspace,
                           void* stream) const {
  require_weight(weight, cols_);
  require_complex(spectrum, "spectrum");
  require_workspace(workspace, workspace_bytes());
  stages_->open(/*dense=*/false, workspace.data, stream)->half_spectrum(weight, spectrum);
}

void Stages::inverse_half_spectrum(const void* spectrum, float* weight, const Workspace& workspace,
                                   void* stream) const {
  require_complex(spectrum, "spectrum");
  require_pointer(weight, item_bytes(ElementType::float32), "weight");
  require_workspace(workspace, workspace_bytes());
  stages_->open(/*dense=*/false, workspace.data, stream)->inverse_half_spectrum(spectrum, weight);
}

TruncatedSvd Stages::truncated_svd(const void* matrix, int power_iterations, std::uint64_t seed,
                                   const ComplexMatrix* warm_start, const Workspace& workspace,
                                   void* stream) const {
  check_rank(options_.joint.rank, half_rows(rows_), cols_);
  check_subspace(power_iterations, oversampling_, warm_start, cols_);
  require_complex(matrix, "matrix");
  require_workspace(workspace, workspace_bytes());
  const SvdOptions options = {options_.joint.rank, power_iterations, oversampling_, seed};
  return stages_->open(/*dense=*/false, workspace.data, stream)
      ->truncated_svd(matrix, options, warm_start);
}

PolarCodes Stages::encode(const void* values, const Workspace& workspace, void* stream) const {
  require_complex(values, "values");
  require_workspace(workspace, workspace_bytes());
  return stages_->open(/*dense=*/false, workspace.data, stream)->encode(values);
}

void Stages::decode(const void* codes, std::span<const std::uint16_t> row_scale, void* values,
                    const Workspace& workspace, void* stream) const {
  require_argument(static_cast<Index>(row_scale.size()) == half_rows(rows_),
                   "row_scale has length ", row_scale.size(), ", expected ", half_rows(rows_));
  require_pointer(codes, 1, "codes");
  require_complex(values, "values");
  require_workspace(workspace, workspace_bytes());
  stages_->open(/*dense=*/false, workspace.data, stream)->decode(codes, row_scale, values);
}

void Stages::dense(const PackedMatrix& matrix, const void* codes, float* weight,
                   const Workspace& workspace, void* stream) const {
  const MatrixSpec& spec = matrix.spec();
  const MatrixSpec own = spec_of(rows_, cols_, options_);
  require_argument(spec.rows == own.rows && spec.cols == own.cols && spec.codec == own.codec &&
                       spec.code_bits == own.code_bits && spec.state_bits == own.state_bits &&
                       spec.rank == own.rank,
                   "the matrix has another shape, code or rank than these stages");
  require_pointer(codes, 1, "codes");
  require_pointer(weight, item_bytes(ElementType::float32), "weight");
  require_workspace(workspace, dense_workspace_bytes());
  stages_->open(/*dense=*/true, workspace.data, stream)->dense(matrix, codes, weight);
}

}  // namespace llava_fa::cuda

// Compression, its stages and products on GPUs: loads the CUDA part, checks arguments and hands
// over to it.
#include "llava_fa/cuda.hpp"

#include "checks.hpp"
#include "device_arguments.hpp"
#include "device_backend.hpp"
#include "llava_fa/spectrum.hpp"
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

// The GPUs that can be used, which the one asked for is among.
const DeviceBackend& backend_of(int device) {
  const DeviceBackend& devices = backend();
  require_device(device, devices.device_count());
  return devices;
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
  product_ = backend_of(device).product(matrix, device);
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
  require_product(memory, activations, output, spec_.cols);
  if (activations.rows == 0) return;
  product_->multiply(memory, activations, output, precision, stream);
}

Compressor::Compressor(Index rows, Index cols, const CompressionOptions& options, int device)
    : rows_(rows), cols_(cols), options_(options), device_(device) {
  validate(spec_of(rows, cols, options));
  validate(options.joint);
  compressor_ = backend_of(device).compressor(rows, cols, options, device);
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
  stages_ = backend_of(device).stages(rows, cols, options, oversampling, device);
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
  require_row_scale(row_scale, half_rows(rows_));
  require_pointer(codes, 1, "codes");
  require_complex(values, "values");
  require_workspace(workspace, workspace_bytes());
  stages_->open(/*dense=*/false, workspace.data, stream)->decode(codes, row_scale, values);
}

void Stages::dense(const PackedMatrix& matrix, const void* codes, float* weight,
                   const Workspace& workspace, void* stream) const {
  require_decodable(matrix.spec(), spec_of(rows_, cols_, options_));
  require_pointer(codes, 1, "codes");
  require_pointer(weight, item_bytes(ElementType::float32), "weight");
  require_workspace(workspace, dense_workspace_bytes());
  stages_->open(/*dense=*/true, workspace.data, stream)->dense(matrix, codes, weight);
}

}  // namespace llava_fa::cuda

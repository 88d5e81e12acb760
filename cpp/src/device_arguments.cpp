// Checks of arguments for devices.
#include "device_arguments.hpp"

#include <algorithm>

#include "checks.hpp"
#include "llava_fa/trellis.hpp"

namespace llava_fa::cuda {

void require_device(int device, int count) {
  require_argument(device >= 0 && device < count, "device is ", device, ", expected 0 to ",
                   count - 1);
}

void require_pointer(const void* pointer, Index alignment, const char* name) {
  require_argument(pointer != nullptr, name, " is null");
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  require_argument(address % static_cast<std::uintptr_t>(alignment) == 0, name,
                   " is not aligned to ", alignment, " bytes: copy it to an allocation of its own");
}

void require_complex(const void* pointer, const char* name) { require_pointer(pointer, 8, name); }

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

void require_product(const DeviceMemory& memory, const Activations& activations,
                     const Output& output, Index cols) {
  require_argument(activations.rows >= 0 && activations.rows <= kMaxChannels,
                   "the number of activations is ", activations.rows, ", expected 0 to ",
                   kMaxChannels);
  require_argument(activations.row_stride >= cols, "activations have row_stride ",
                   activations.row_stride, ", expected at least their width ", cols);
  if (activations.rows == 0) return;
  require_pointer(memory.codes, kAlignment, "codes");
  require_pointer(memory.constants, kAlignment, "constants");
  require_pointer(memory.workspace, kAlignment, "workspace");
  require_pointer(activations.data, item_bytes(activations.type), "activations");
  require_pointer(output.data, item_bytes(output.type), "output");
}

void require_row_scale(std::span<const std::uint16_t> row_scale, Index rows) {
  require_argument(static_cast<Index>(row_scale.size()) == rows, "row_scale has length ",
                   row_scale.size(), ", expected ", rows);
}

void validate_stages(MatrixSpec spec) {
  if (spec.codec == Codec::trellis) {
    trellis(spec.code_bits, spec.state_bits);
    spec.state_bits = std::max(spec.state_bits, kMinStateBits);
  }
  validate(spec);
}

void require_decodable(const MatrixSpec& matrix, const MatrixSpec& stages) {
  require_argument(matrix.rows == stages.rows && matrix.cols == stages.cols &&
                       matrix.codec == stages.codec && matrix.code_bits == stages.code_bits &&
                       matrix.state_bits == stages.state_bits && matrix.rank == stages.rank,
                   "the matrix has another shape, code or rank than these stages");
}

}  // namespace llava_fa::cuda

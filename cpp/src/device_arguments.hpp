// Checks of what callers of llava_fa/cuda.hpp give, before a device sees it. All throw
// Error(invalid_argument).
#pragma once

#include <cstdint>
#include <span>

#include "llava_fa/cuda.hpp"

namespace llava_fa::cuda {

// One of `count` devices.
void require_device(int device, int count);

// Not null, and aligned to so many bytes.
void require_pointer(const void* pointer, Index alignment, const char* name);
// To pairs of float32.
void require_complex(const void* pointer, const char* name);

void require_workspace(const Workspace& workspace, Index needed);
// Of `cols` columns.
void require_weight(const Weight& weight, Index cols);
// Of a matrix with `cols` columns. Without activations, pointers may be null.
void require_product(const DeviceMemory& memory, const Activations& activations,
                     const Output& output, Index cols);

void require_row_scale(std::span<const std::uint16_t> row_scale, Index rows);
// Single stages are of whatever codes there are: a state may be shorter than a matrix' is.
void validate_stages(MatrixSpec spec);
// A matrix that stages of this specification decode.
void require_decodable(const MatrixSpec& matrix, const MatrixSpec& stages);

}  // namespace llava_fa::cuda

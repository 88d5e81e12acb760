// The C interface: checks of what C cannot check, and errors as statuses.
#include <new>
#include <string>
#include <vector>

#include "checks.hpp"
#include "llava_fa/llava_fa.h"
#include "llava_fa/matmul.hpp"
#include "llava_fa/packed_matrix.hpp"
#include "llava_fa/runtime.hpp"

struct llava_fa_matrix {
  llava_fa::PackedMatrix packed;
};

namespace {

using llava_fa::Index;

thread_local std::string last_error;

llava_fa_status status_of(llava_fa::ErrorCode code) {
  switch (code) {
    case llava_fa::ErrorCode::invalid_argument:
    case llava_fa::ErrorCode::non_finite: return LLAVA_FA_INVALID_ARGUMENT;
    case llava_fa::ErrorCode::inconsistent_format: return LLAVA_FA_INCONSISTENT_FORMAT;
    case llava_fa::ErrorCode::unavailable:
    case llava_fa::ErrorCode::device: return LLAVA_FA_UNAVAILABLE;
  }
  return LLAVA_FA_INTERNAL_ERROR;
}

llava_fa_status failed(llava_fa_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return status;
}

// Runs body() and turns what it throws into a status.
template <typename Body>
llava_fa_status guarded(Body body) noexcept {
  try {
    body();
    return LLAVA_FA_OK;
  } catch (const llava_fa::Error& error) {
    return failed(status_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return failed(LLAVA_FA_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(LLAVA_FA_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(LLAVA_FA_INTERNAL_ERROR, "unknown error");
  }
}

void require_pointer(const void* pointer, const char* name) {
  llava_fa::require_argument(pointer != nullptr, name, " is null");
}

void require_count(const char* name, size_t count, size_t expected) {
  llava_fa::require_argument(count == expected, name, " is ", count, ", expected ", expected);
}

llava_fa::TensorView view_of(const llava_fa_tensor& tensor, bool borrowed) {
  require_pointer(tensor.name, "a tensor's name");
  llava_fa::require_argument(tensor.data != nullptr || tensor.bytes == 0, "the data of tensor \"",
                             tensor.name, "\" is null");
  llava_fa::require_argument(tensor.bytes <= static_cast<size_t>(PTRDIFF_MAX), "tensor \"",
                             tensor.name, "\" has ", tensor.bytes, " bytes");
  llava_fa::TensorView view{tensor.name, static_cast<const std::byte*>(tensor.data),
                            static_cast<Index>(tensor.bytes)};
  // The caller keeps the bytes: an owner that frees nothing.
  if (borrowed) view.owner = std::shared_ptr<const void>(tensor.data, [](const void*) {});
  return view;
}

}  // namespace

const char* llava_fa_last_error(void) { return last_error.c_str(); }

const char* llava_fa_version(void) { return llava_fa::version(); }

llava_fa_status llava_fa_set_num_threads(int count) {
  return guarded([&] { llava_fa::set_num_threads(count); });
}

llava_fa_status llava_fa_matrix_open(const llava_fa_tensor* tensors, size_t count, int ownership,
                                     llava_fa_matrix** matrix) {
  if (matrix != nullptr) *matrix = nullptr;
  return guarded([&] {
    require_pointer(tensors, "tensors");
    require_pointer(matrix, "matrix");
    llava_fa::require_argument(ownership == LLAVA_FA_COPY || ownership == LLAVA_FA_BORROW,
                               "ownership is ", ownership, ", expected 0 or 1");
    std::vector<llava_fa::TensorView> views;
    for (size_t i = 0; i < count; ++i) {
      views.push_back(view_of(tensors[i], ownership == LLAVA_FA_BORROW));
    }
    *matrix = new llava_fa_matrix{llava_fa::PackedMatrix::from_tensors(views)};
  });
}

void llava_fa_matrix_close(llava_fa_matrix* matrix) { delete matrix; }

int64_t llava_fa_matrix_rows(const llava_fa_matrix* matrix) {
  return matrix == nullptr ? 0 : matrix->packed.spec().rows;
}

int64_t llava_fa_matrix_columns(const llava_fa_matrix* matrix) {
  return matrix == nullptr ? 0 : matrix->packed.spec().cols;
}

int64_t llava_fa_matrix_stored_bytes(const llava_fa_matrix* matrix) {
  return matrix == nullptr ? 0 : matrix->packed.bytes();
}

llava_fa_status llava_fa_matrix_decode(const llava_fa_matrix* matrix, float* weight,
                                       size_t weight_count) {
  return guarded([&] {
    require_pointer(matrix, "matrix");
    require_pointer(weight, "weight");
    const llava_fa::MatrixSpec& spec = matrix->packed.spec();
    require_count("weight_count", weight_count, static_cast<size_t>(spec.rows * spec.cols));
    matrix->packed.decode(weight);
  });
}

llava_fa_status llava_fa_matrix_multiply(const llava_fa_matrix* matrix, const float* activations,
                                         size_t activation_count, size_t tokens, int precision,
                                         float* output, size_t output_count) {
  return guarded([&] {
    require_pointer(matrix, "matrix");
    const llava_fa::MatrixSpec& spec = matrix->packed.spec();
    llava_fa::require_argument(precision == LLAVA_FA_SINGLE || precision == LLAVA_FA_HALF,
                               "precision is ", precision, ", expected 0 or 1");
    llava_fa::require_argument(tokens <= static_cast<size_t>(llava_fa::kMaxChannels), "tokens is ",
                               tokens, ", expected at most ", llava_fa::kMaxChannels);
    require_count("activation_count", activation_count, tokens * static_cast<size_t>(spec.cols));
    require_count("output_count", output_count, tokens * static_cast<size_t>(spec.rows));
    if (tokens == 0) return;
    require_pointer(activations, "activations");
    require_pointer(output, "output");
    const llava_fa::MatrixView x{activations, static_cast<Index>(tokens), spec.cols, spec.cols};
    llava_fa::matmul(
        matrix->packed, x, output,
        precision == LLAVA_FA_HALF ? llava_fa::Precision::half : llava_fa::Precision::single);
  });
}

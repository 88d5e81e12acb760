/* The C interface, for runtimes that are not written in C++: opens a matrix from the tensors of a
 * compressed checkpoint in memory (docs/format.md), decodes it and multiplies with it.
 *
 * Functions may be called from any thread; a matrix may be used by several threads at once, except
 * for closing it. No exception leaves this interface. Every function that can fail returns a status
 * and leaves a message for the calling thread in llava_fa_last_error. */
#ifndef LLAVA_FA_H
#define LLAVA_FA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum llava_fa_status {
  LLAVA_FA_OK = 0,
  LLAVA_FA_INVALID_ARGUMENT = 1,    /* null, a wrong size, a value outside of its range */
  LLAVA_FA_INCONSISTENT_FORMAT = 2, /* tensors that contradict docs/format.md */
  LLAVA_FA_UNAVAILABLE = 3,         /* no code for this processor beside the library */
  LLAVA_FA_OUT_OF_MEMORY = 4,
  LLAVA_FA_INTERNAL_ERROR = 5
} llava_fa_status;

/* What the last call of this thread that failed complains of; "" if none has. Valid until the
 * thread's next failing call. */
const char* llava_fa_last_error(void);

/* "major.minor.patch" */
const char* llava_fa_version(void);

/* Threads of every product and decoding; 0 for the default, OMP_NUM_THREADS or all processors.
 * Results do not depend on it. */
llava_fa_status llava_fa_set_num_threads(int count);

/* A stored tensor: its name without the module's, such as "codes", and its bytes. */
typedef struct llava_fa_tensor {
  const char* name;
  const void* data;
  size_t bytes;
} llava_fa_tensor;

typedef enum llava_fa_ownership {
  LLAVA_FA_COPY = 0,  /* the bytes are copied */
  LLAVA_FA_BORROW = 1 /* the bytes stay where they are, unchanged until the matrix is closed */
} llava_fa_ownership;

/* A compressed weight W (rows, columns) = (output, input channels), as y = x W^T uses it. */
typedef struct llava_fa_matrix llava_fa_matrix;

/* Opens a matrix from all of its tensors, in any order. `ownership` is a llava_fa_ownership.
 * Everything is checked before use. On success *matrix is to be closed; otherwise it is null. */
llava_fa_status llava_fa_matrix_open(const llava_fa_tensor* tensors, size_t count, int ownership,
                                     llava_fa_matrix** matrix);

/* Closes a matrix; null is allowed. */
void llava_fa_matrix_close(llava_fa_matrix* matrix);

/* Sizes; 0 for null. */
int64_t llava_fa_matrix_rows(const llava_fa_matrix* matrix);
int64_t llava_fa_matrix_columns(const llava_fa_matrix* matrix);
int64_t llava_fa_matrix_stored_bytes(const llava_fa_matrix* matrix);

/* Writes W, row-major, to weight, which has room for weight_count = rows * columns floats. */
llava_fa_status llava_fa_matrix_decode(const llava_fa_matrix* matrix, float* weight,
                                       size_t weight_count);

typedef enum llava_fa_precision {
  LLAVA_FA_SINGLE = 0, /* agrees with the decoded matrix to 1e-5 */
  LLAVA_FA_HALF = 1    /* to 1e-3, like rounding to bfloat16, and faster for few tokens */
} llava_fa_precision;

/* output (tokens, rows) = activations (tokens, columns) W^T, row-major. The counts are those of the
 * arrays' floats and must be tokens * columns and tokens * rows; `precision` is a
 * llava_fa_precision. */
llava_fa_status llava_fa_matrix_multiply(const llava_fa_matrix* matrix, const float* activations,
                                         size_t activation_count, size_t tokens, int precision,
                                         float* output, size_t output_count);

#ifdef __cplusplus
}
#endif

#endif /* LLAVA_FA_H */

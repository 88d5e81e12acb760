/* Multiplies a vector of ones with one matrix of a compressed checkpoint, in plain C.
 *
 *     cc multiply.c $(pkg-config --cflags --libs llava_fa) -o multiply
 *     ./multiply small/model.safetensors model.language_model.layers.0.mlp.up_proj
 *
 * Prints the outputs, one per line. A real runtime would map the file and read its JSON header with
 * the parser that it has; here the header is searched for the tensors' names. */
#include <llava_fa/llava_fa.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char* const kSuffixes[] = {
    "header",           "matrix_scale",        "codes",         "row_scale",
    "channel_scale_in", "channel_scale_out",   "low_rank_left", "low_rank_left_scale",
    "low_rank_right",   "low_rank_right_scale"};
enum { kSuffixCount = sizeof(kSuffixes) / sizeof(kSuffixes[0]) };

struct file {
  char* bytes; /* followed by a zero */
  size_t size;
};

static int read_file(const char* path, struct file* file) {
  FILE* stream = fopen(path, "rb");
  if (stream == NULL) return 0;
  int complete = 0;
  if (fseek(stream, 0, SEEK_END) == 0) {
    const long size = ftell(stream);
    rewind(stream);
    file->bytes = size < 0 ? NULL : malloc((size_t)size + 1);
    if (file->bytes != NULL) {
      file->size = (size_t)size;
      file->bytes[size] = 0;
      complete = fread(file->bytes, 1, file->size, stream) == file->size;
    }
  }
  fclose(stream);
  return complete;
}

/* The place of a tensor in a safetensors file: eight bytes of header length, the JSON header, the
 * tensors. Returns 0 if there is none of that name, or its place is outside of the file. */
static int find_tensor(const struct file* file, const char* name, llava_fa_tensor* tensor) {
  unsigned long long header_size = 0;
  if (file->size < 8) return 0;
  memcpy(&header_size, file->bytes, 8);
  if (header_size > file->size - 8) return 0;
  char key[512];
  if (snprintf(key, sizeof(key), "\"%s\":{", name) >= (int)sizeof(key)) return 0;
  const char* entry = strstr(file->bytes + 8, key);
  const char* offsets = entry == NULL ? NULL : strstr(entry, "\"data_offsets\":[");
  const char* end_of_header = file->bytes + 8 + header_size;
  unsigned long long begin = 0, end = 0;
  if (offsets == NULL || offsets >= end_of_header) return 0;
  if (sscanf(offsets, "\"data_offsets\":[%llu,%llu]", &begin, &end) != 2) return 0;
  if (begin > end || end > file->size - 8 - header_size) return 0;
  tensor->data = end_of_header + begin;
  tensor->bytes = (size_t)(end - begin);
  return 1;
}

static llava_fa_matrix* open_matrix(const struct file* file, const char* module) {
  llava_fa_tensor tensors[kSuffixCount];
  size_t count = 0;
  for (int i = 0; i < kSuffixCount; ++i) {
    char name[512];
    snprintf(name, sizeof(name), "%s.%s", module, kSuffixes[i]);
    tensors[count].name = kSuffixes[i];
    if (find_tensor(file, name, &tensors[count])) ++count;
  }
  llava_fa_matrix* matrix = NULL;
  if (llava_fa_matrix_open(tensors, count, LLAVA_FA_BORROW, &matrix) != LLAVA_FA_OK) {
    fprintf(stderr, "%s: %s\n", module, llava_fa_last_error());
  }
  return matrix;
}

static int print_product_with_ones(const llava_fa_matrix* matrix) {
  const size_t rows = (size_t)llava_fa_matrix_rows(matrix);
  const size_t columns = (size_t)llava_fa_matrix_columns(matrix);
  float* x = malloc(columns * sizeof(float));
  float* y = malloc(rows * sizeof(float));
  int done = 0;
  if (x != NULL && y != NULL) {
    for (size_t j = 0; j < columns; ++j) x[j] = 1.0f;
    done = llava_fa_matrix_multiply(matrix, x, columns, 1, LLAVA_FA_SINGLE, y, rows) == LLAVA_FA_OK;
    if (!done) fprintf(stderr, "%s\n", llava_fa_last_error());
    for (size_t i = 0; done && i < rows; ++i) printf("%.9g\n", y[i]);
  }
  free(y);
  free(x);
  return done;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s FILE.safetensors MODULE\n", argv[0]);
    return 2;
  }
  struct file file = {NULL, 0};
  if (!read_file(argv[1], &file)) {
    fprintf(stderr, "%s: cannot be read\n", argv[1]);
    free(file.bytes);
    return 1;
  }
  llava_fa_matrix* matrix = open_matrix(&file, argv[2]);
  const int done = matrix != NULL && print_product_with_ones(matrix);
  llava_fa_matrix_close(matrix); /* before the bytes that it borrows */
  free(file.bytes);
  return done ? 0 : 1;
}

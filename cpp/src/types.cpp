// Storage behind types.hpp.
#include "llava_fa/types.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace llava_fa {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

}  // namespace

FloatBuffer::FloatBuffer(Index count) : count_(count) {
  if (count == 0) return;
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  const std::size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kCacheLine;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  data_ = static_cast<float*>(std::aligned_alloc(alignment, rounded));
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  // Advice only: where huge pages are off, ordinary ones serve.
  if (alignment == kHugePage) (void)madvise(data_, rounded, MADV_HUGEPAGE);
#endif
}

FloatBuffer::~FloatBuffer() { std::free(data_); }

ComplexMatrix ComplexMatrix::clone() const {
  ComplexMatrix copy(rows_, cols_);
  std::copy_n(real(), 2 * count(), copy.real());
  return copy;
}

}  // namespace llava_fa

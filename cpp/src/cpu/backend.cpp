// Exports this variant's backend under the one symbol that the loader looks up.
#include "backend.hpp"

extern "C" __attribute__((visibility("default"))) const llava_fa::Backend* llava_fa_cpu_backend() {
  static const llava_fa::cpu::CpuBackend backend;
  return &backend;
}

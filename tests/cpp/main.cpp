// Runs the suite on the CPU variant that LLAVA_FA_CPU names; exit status 77 if it cannot run here.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "llava_fa/error.hpp"
#include "llava_fa/runtime.hpp"

int main(int argc, char** argv) {
  try {
    std::printf("CPU variant: %s\n", llava_fa::cpu_variant().c_str());
  } catch (const llava_fa::Error& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  doctest::Context context(argc, argv);
  return context.run();
}

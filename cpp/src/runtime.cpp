// Threads, version, and the choice and loading of the CPU variant.
#include "llava_fa/runtime.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "backend.hpp"
#include "checks.hpp"
#include "module_loading.hpp"
#include "process.hpp"

namespace llava_fa {
namespace {

std::atomic<int> requested_threads{0};

std::atomic<bool> forked{false};
[[maybe_unused]] const int watches_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });

int default_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const int count = std::atoi(text);
    if (count > 0) return count;
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

bool runs_here(const std::string& variant) {
#if defined(__x86_64__)
  if (variant == "x86-64-v4-gfni") {
    return __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("gfni") &&
           __builtin_cpu_supports("avx512vbmi");
  }
  if (variant == "x86-64-v4") return __builtin_cpu_supports("x86-64-v4");
  if (variant == "x86-64-v3") return __builtin_cpu_supports("x86-64-v3");
#endif
  return variant == "baseline";
}

std::filesystem::path variant_file(const std::string& variant) {
  return module_file("cpu-" + variant);
}

std::string choose_variant() {
  static const std::array<std::string, 4> best_first = {"x86-64-v4-gfni", "x86-64-v4", "x86-64-v3",
                                                        "baseline"};
  if (const char* wanted = std::getenv("LLAVA_FA_CPU")) {
    const bool known = std::find(best_first.begin(), best_first.end(), wanted) != best_first.end();
    require(known && runs_here(wanted) && std::filesystem::exists(variant_file(wanted)),
            ErrorCode::unavailable, "LLAVA_FA_CPU=", wanted,
            ": expected x86-64-v4-gfni, x86-64-v4, x86-64-v3 or baseline, built and supported by "
            "this processor");
    return wanted;
  }
  for (const std::string& variant : best_first) {
    if (runs_here(variant) && std::filesystem::exists(variant_file(variant))) return variant;
  }
  throw Error(ErrorCode::unavailable,
              concat("no CPU variant found beside the library in ",
                     variant_file("").parent_path().string(), ": reinstall llava-fa"));
}

struct LoadedVariant {
  std::string name;
  const Backend* backend;
};

LoadedVariant load_variant() {
  const std::string name = choose_variant();
  using Entry = const Backend* (*)();
  const auto entry =
      reinterpret_cast<Entry>(load_entry(variant_file(name), "llava_fa_cpu_backend"));
  return {name, entry()};
}

const LoadedVariant& loaded_variant() {
  static const LoadedVariant variant = load_variant();
  return variant;
}

}  // namespace

void set_num_threads(int count) {
  require_argument(count >= 0, "thread count is ", count, ", expected 0 (default) or more");
  requested_threads = count;
}

int num_threads() {
  static const int by_default = default_threads();
  const int requested = requested_threads;
  return requested > 0 ? requested : by_default;
}

bool in_forked_process() { return forked; }

std::string cpu_variant() { return loaded_variant().name; }

const char* version() { return LLAVA_FA_VERSION; }

const Backend& cpu_backend() { return *loaded_variant().backend; }

}  // namespace llava_fa

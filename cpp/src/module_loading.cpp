// dlopen and where the library itself lies.
#include "module_loading.hpp"

#include <dlfcn.h>

#include "checks.hpp"

namespace llava_fa {
namespace {

// Folder of the shared object that contains this function.
std::filesystem::path own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&own_folder), &info) == 0 || !info.dli_fname) return {};
  return std::filesystem::path(info.dli_fname).parent_path();
}

}  // namespace

std::filesystem::path module_file(const std::string& name) {
  return own_folder() / ("libllava_fa_" + name + LLAVA_FA_MODULE_SUFFIX);
}

void* load_entry(const std::filesystem::path& file, const char* symbol) {
  void* module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  require(module != nullptr, ErrorCode::unavailable, "cannot load ", file.string(), ": ",
          module ? "" : dlerror());
  void* entry = dlsym(module, symbol);
  require(entry != nullptr, ErrorCode::unavailable, file.string(), " has no entry point");
  return entry;
}

}  // namespace llava_fa

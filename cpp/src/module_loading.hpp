// Shared objects beside the library, loaded at run time.
#pragma once

#include <filesystem>
#include <string>

namespace llava_fa {

// The file of a shared object "libllava_fa_NAME" beside the library; it need not exist.
std::filesystem::path module_file(const std::string& name);

// The function that a shared object exports under `symbol`.
// Throws Error(unavailable) if it cannot be loaded or has no such function.
void* load_entry(const std::filesystem::path& file, const char* symbol);

}  // namespace llava_fa

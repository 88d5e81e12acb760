// Process-wide settings: number of threads and the instruction-set variant in use.
#pragma once

#include <string>

namespace llava_fa {

// Threads used by every stage; 0 restores the default (OMP_NUM_THREADS or all cores).
// Results do not depend on it. Throws Error(invalid_argument) if negative.
void set_num_threads(int count);
int num_threads();

// Name of the CPU variant chosen at first use: "x86-64-v4-gfni", "x86-64-v4", "x86-64-v3" or
// "baseline".
// The environment variable LLAVA_FA_CPU overrides the choice; a variant that the processor cannot
// run, or that was not built, raises Error(unavailable).
std::string cpu_variant();

// Version of the library, "major.minor.patch".
const char* version();

}  // namespace llava_fa

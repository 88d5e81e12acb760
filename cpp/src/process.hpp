// What the library must know of the process that it runs in.
#pragma once

namespace llava_fa {

// Whether this process was forked, without exec, from one that had loaded the library. Threads do
// not come along, but what OpenMP remembers of them does, and it would wait for them for ever.
bool in_forked_process();

}  // namespace llava_fa

// Umbrella header: the whole pipeline, from weights to packed matrix to run time.
#pragma once

#include "llava_fa/calibration.hpp"    // IWYU pragma: export
#include "llava_fa/constellation.hpp"  // IWYU pragma: export
#include "llava_fa/cuda.hpp"           // IWYU pragma: export
#include "llava_fa/error.hpp"          // IWYU pragma: export
#include "llava_fa/feedback.hpp"       // IWYU pragma: export
#include "llava_fa/joint_solver.hpp"   // IWYU pragma: export
#include "llava_fa/low_rank.hpp"       // IWYU pragma: export
#include "llava_fa/matmul.hpp"         // IWYU pragma: export
#include "llava_fa/packed_matrix.hpp"  // IWYU pragma: export
#include "llava_fa/polar_codec.hpp"    // IWYU pragma: export
#include "llava_fa/runtime.hpp"        // IWYU pragma: export
#include "llava_fa/spectrum.hpp"       // IWYU pragma: export
#include "llava_fa/trellis.hpp"        // IWYU pragma: export
#include "llava_fa/types.hpp"          // IWYU pragma: export

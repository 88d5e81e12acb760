"""Weights and shapes that the tests of the matrix level share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

# 1, powers of two, primes with a dense transform, primes with the chirp transform, composites.
SIZES = [1, 2, 3, 5, 8, 13, 16, 31, 48, 64, 97, 100, 127, 151, 200, 269]
shapes = st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES))
seeds = st.integers(0, 2**32 - 1)


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

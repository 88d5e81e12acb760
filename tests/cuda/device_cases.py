"""What the tests on a GPU share: the skip where there is none, and the codes they go through."""

from __future__ import annotations

import pytest

from llava_fa import cuda_unavailable_reason

_REASON = cuda_unavailable_reason()
needs_gpu = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

CODES = [
    *(("ring", bits / 2) for bits in range(2, 11)),
    *(("product", bits / 2) for bits in (2, 5, 10)),
    *(("uniform", bits / 2) for bits in (2, 7)),
    *(("trellis", bits / 2) for bits in range(2, 9)),
]

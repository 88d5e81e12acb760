"""What the tests on a GPU share: the skip where there is none, and the codes they go through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava_fa import cuda_unavailable_reason

_REASON = cuda_unavailable_reason()
needs_gpu = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

SHAPES = [(1, 1), (9, 1), (1, 40), (61, 64), (131, 77), (512, 1025), (1100, 134), (1021, 67)]

CODES = [
    *(("ring", bits / 2) for bits in range(2, 11)),
    *(("product", bits / 2) for bits in (2, 5, 10)),
    *(("uniform", bits / 2) for bits in (2, 7)),
    *(("trellis", bits / 2) for bits in range(2, 9)),
]


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return always the same random one, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)

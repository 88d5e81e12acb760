"""Every kernel on small matrices, for compute-sanitizer, under which larger ones would take long.

``python -m bench.gpu`` runs it so; alone it says that results are finite.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from device_cases import CODES, needs_gpu, weight
from llava_fa import CompressionConfig, compress_matrix
from llava_fa.nn import FourierLinear

pytestmark = needs_gpu


def compress_and_multiply(
    shape: tuple[int, int], moment: Tensor | None = None, **options: Any
) -> None:
    config = CompressionConfig(**{"bits": 2, "state_bits": 9, "max_alternations": 2, **options})
    packed = compress_matrix(weight(*shape).cuda(), config, input_second_moment=moment)
    layer = FourierLinear.from_matrix(packed).to("cuda")
    assert layer.dense().isfinite().all()
    for tokens in (1, 3, 70):
        for dtype in (torch.float32, torch.bfloat16):
            assert layer(weight(tokens, shape[1]).to(dtype).cuda()).isfinite().all()


@pytest.mark.parametrize(("codec", "bits"), CODES)
def test_codes(codec: str, bits: float) -> None:
    compress_and_multiply((61, 67), codec=codec, bits=bits)


@pytest.mark.parametrize("shape", [(1, 1), (9, 1), (1, 40), (1100, 5), (60000, 2), (3, 18944)])
def test_shapes(shape: tuple[int, int]) -> None:
    compress_and_multiply(shape)


@pytest.mark.parametrize("codec", ["ring", "trellis"])
@pytest.mark.parametrize("rank", [0, 1, 31])
def test_feedback_and_low_rank(codec: str, rank: int) -> None:
    inputs = weight(200, 67)
    for moment in (None, (inputs.T @ inputs / 200).diagonal(), inputs.T @ inputs / 200):
        compress_and_multiply((61, 67), moment, codec=codec, rank=rank)


@pytest.mark.parametrize("state_bits", [12, 14, 16])
def test_searches_in_the_workspace(state_bits: int) -> None:
    moment = torch.eye(9)
    for given in (None, moment):
        compress_and_multiply((90, 9), given, codec="trellis", state_bits=state_bits)

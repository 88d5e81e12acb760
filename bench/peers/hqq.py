"""HQQ: half-quadratic scales and zero points in groups along the rows, no data.

Counted: its packed codes (three-bit codes take 3.2 bits), float16 scales and zero points.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.baselines import Baseline
from bench.peers.task import Setting, Task, bits_of, linear

PACKAGE = "hqq"
SETTINGS = (
    Setting("HQQ g64", 4, {"nbits": 4, "group_size": 64}),
    Setting("HQQ g64", 3, {"nbits": 3, "group_size": 64}),
    Setting("HQQ g64", 2, {"nbits": 2, "group_size": 64}),
    Setting("HQQ g16, its advice for 2 bits", 2, {"nbits": 2, "group_size": 16}),
    Setting("HQQ g128, matched", 4, {"nbits": 4, "group_size": 128}),
    Setting("HQQ g128, matched", 2, {"nbits": 2, "group_size": 128}),
)


def quantize(task: Task, options: dict[str, Any], _seed: int) -> dict[str, Baseline]:
    """Build its linear layer and dequantize it."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    results = {}
    for name, weight in task.weights.items():
        layer = HQQLinear(
            linear(weight),
            BaseQuantizeConfig(**options),
            compute_dtype=torch.float16,
            device="cpu",
        )
        bits = bits_of(layer.W_q, layer.meta["scale"], layer.meta["zero"])
        results[name] = Baseline(layer.dequantize().float(), bits)
    return results

"""torchao: symmetric integer weights in groups, no data.

Its packed 4-bit tensors have no CPU kernels (they ask for CUDA or further packages), so the
portable ``IntxWeightOnlyConfig`` is measured, which keeps every code in an int8. Counted in its
favour: codes at their nominal width, float16 scales; its zero points are all zero and not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.baselines import Baseline
from bench.peers.task import Setting, Task, bits_of, linear

PACKAGE = "torchao"
SETTINGS = tuple(
    Setting("torchao intx g64", bits, {"bits": bits, "group": 64}) for bits in (2, 3, 4)
)


def quantize(task: Task, options: dict[str, Any], _seed: int) -> dict[str, Baseline]:
    """Quantize a layer in place, dequantize its weight."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    results = {}
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{options['bits']}"),
        granularity=PerGroup(options["group"]),
    )
    for name, weight in task.weights.items():
        model = nn.Sequential(linear(weight, torch.float16))
        quantize_(model, config)
        coded = model[0].weight.detach()
        if bool(coded.zero_point.any()):
            raise ValueError(f'"{name}" has zero points, which are not counted')
        bits = weight.numel() * options["bits"] + bits_of(coded.scale)
        results[name] = Baseline(coded.dequantize().float(), bits)
    return results

"""optimum-quanto: qint4 and qint2 weights in its own choice of group size.

It asks for groups of 128 and takes smaller ones where 128 does not divide the row. Counted: packed
codes, float16 scales and shifts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.baselines import Baseline
from bench.peers.task import Setting, Task, bits_of, linear

PACKAGE = "optimum-quanto"
SETTINGS = (
    Setting("optimum-quanto qint4", 4, {"qtype": "qint4"}),
    Setting("optimum-quanto qint2", 2, {"qtype": "qint2"}),
)


def quantize(task: Task, options: dict[str, Any], _seed: int) -> dict[str, Baseline]:
    """Quantize and freeze a layer, dequantize its weight."""
    from optimum import quanto

    results = {}
    for name, weight in task.weights.items():
        model = nn.Sequential(linear(weight, torch.float16))
        quanto.quantize(model, weights=getattr(quanto, options["qtype"]))
        quanto.freeze(model)
        coded = model[0].weight.detach()
        bits = bits_of(coded._data._data, coded._scale, coded._shift)
        results[name] = Baseline(coded.dequantize().float(), bits)
    return results

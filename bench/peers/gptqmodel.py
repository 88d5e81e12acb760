"""GPTQModel: its own GPTQ of one linear layer at a time, given inputs with our second moments.

For GPTQ only sums of x x^T matter, so the layer is fed sqrt(n) times a root of E[x x^T], n rows.
Counted as its checkpoints store them: codes and zero points at their width, float16 scales, and
for activation order 32 bits of ``g_idx`` per input channel.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from typing import Any

import torch
from torch import Tensor

from bench.baselines import Baseline
from bench.peers.task import Setting, Task, linear

PACKAGE = "gptqmodel"
OWN = {"group_size": 128}
STRONG = {
    "group_size": 64,
    "sym": False,
    "desc_act": True,
    "act_group_aware": False,
    "mse": 2.4,
    "damp_percent": 0.01,
}
SETTINGS = (
    Setting("GPTQModel, own settings", 4, {"bits": 4, **OWN}),
    *(Setting("GPTQModel strong g64", bits, {"bits": bits, **STRONG}) for bits in (2, 3, 4)),
)


def quantize(task: Task, options: dict[str, Any], _seed: int) -> dict[str, Baseline]:
    """Run its GPTQ on every layer."""
    _without_torchvision()
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    results = {}
    for name, weight in task.weights.items():
        config = QuantizeConfig(**options)
        solver = GPTQ(linear(weight), config)
        solver.quantizer.configure(perchannel=True)
        solver.add_batch(inputs_with(task.second_moments[name]), torch.empty(0))
        # Blocks of one group: with larger ones it sets the scales of a block's later groups from
        # weights that lack the feedback of the earlier ones.
        dense, scale, _, groups, *_ = solver.quantize(blocksize=config.group_size)
        bits = weight.numel() * config.bits + scale.numel() * (16 + config.bits)
        bits += 32 * groups.numel() if config.desc_act else 0
        results[name] = Baseline(dense.float(), bits)
    return results


def inputs_with(second_moment: Tensor) -> Tensor:
    """Return n rows x, float32 (n, n), whose mean of x x^T is the given matrix."""
    values, vectors = torch.linalg.eigh(second_moment.double())
    root = values.clamp_min(0).sqrt()[:, None] * vectors.T
    return (root * len(root) ** 0.5).float()


def _without_torchvision() -> None:
    """Let the package be imported where torchvision is missing or built for another torch.

    It imports ``torchvision.transforms`` for the images of one model family, which is not used
    here. transformers is loaded first, so that it does not take the stand-in for the real one.
    """
    import transformers

    assert transformers.PreTrainedModel
    try:
        # Only whether it loads counts; nothing of it is used here.
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            stand_in: Any = types.ModuleType(name)
            stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None)
            stand_in.__path__ = []
            stand_in.InterpolationMode = types.SimpleNamespace(BICUBIC=3)
            sys.modules[name] = stand_in

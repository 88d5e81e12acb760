"""What adapters receive and return, and the files that carry it between the two environments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.baselines import Baseline

ADAPTERS = ("bitsandbytes_nf4", "hqq", "quanto", "torchao", "gptqmodel", "autoround")
"""Modules of ``bench.peers``, fastest first."""


@dataclass(frozen=True)
class Setting:
    """One row of the comparison.

    Attributes
    ----------
    label : str
        Name of the row, the peer's first.
    bits : float
        Nominal width.
    options : mapping
        What ``quantize`` gets, JSON types.
    seeded : bool
        Whether a seed makes a difference.
    """

    label: str
    bits: float
    options: Mapping[str, Any] = field(default_factory=dict)
    seeded: bool = False


@dataclass(frozen=True)
class Task:
    """What there is to quantize.

    Attributes
    ----------
    weights : dict of Tensor
        float32 (m, n) by module name.
    second_moments : dict of Tensor
        E[x x^T], float64 (n, n), by module name.
    model : Path
        The checkpoint, for peers that run the model themselves.
    calibration : int
        How many calibration questions the moments came from.
    """

    weights: dict[str, Tensor]
    second_moments: dict[str, Tensor]
    model: Path
    calibration: int


def linear(weight: Tensor, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """Make a layer without bias around a copy of a weight."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def bits_of(*buffers: Tensor) -> int:
    """Sum the bits that buffers occupy."""
    return sum(8 * buffer.nbytes for buffer in buffers)


def write_task(path: Path, task: Task) -> None:
    """Save a task as one safetensors file."""
    tensors = {f"weight {name}": tensor for name, tensor in task.weights.items()}
    tensors |= {f"moment {name}": tensor for name, tensor in task.second_moments.items()}
    metadata = {"model": str(task.model), "calibration": str(task.calibration)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def read_task(path: Path) -> Task:
    """Undo ``write_task``."""
    parts: dict[str, dict[str, Tensor]] = {"weight": {}, "moment": {}}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for key, tensor in load_file(path).items():
        kind, name = key.split(" ", 1)
        parts[kind][name] = tensor
    return Task(
        parts["weight"], parts["moment"], Path(metadata["model"]), int(metadata["calibration"])
    )


def write_answer(path: Path, results: Mapping[str, Baseline]) -> None:
    """Save decoded weights; the stored bits of every matrix go into the metadata."""
    bits = {name: result.stored_bits for name, result in results.items()}
    dense = {name: result.dense.float().contiguous() for name, result in results.items()}
    save_file(dense, path, {"stored_bits": json.dumps(bits)})


def read_answer(path: Path) -> dict[str, Baseline]:
    """Undo ``write_answer``."""
    with safe_open(path, framework="pt") as file:
        bits = json.loads(file.metadata()["stored_bits"])
        return {name: Baseline(file.get_tensor(name), bits[name]) for name in bits}

"""The dense model of a checkpoint, on the CPU or on a GPU, for calibration and refinement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from .devices import memory_errors
from .modules import build_meta_model
from .shards import Checkpoint

_CPU = torch.device("cpu")


def load_dense_model(
    checkpoint: Checkpoint, dtype: str = "auto", device: torch.device = _CPU
) -> Any:
    """Load the checkpoint's own class of model, by default in its own type.

    Raises
    ------
    DeviceMemoryError
        It does not fit into the GPU's memory.
    """
    model_class: Any = type(build_meta_model(checkpoint))
    model = model_class.from_pretrained(checkpoint.folder, dtype=dtype).eval()
    with calibration_memory_errors():
        return model.to(device)


def on_device_of(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's inputs on its device, floating-point ones in its type."""
    return {key: _on_device_of(model, value) for key, value in inputs.items()}


def _on_device_of(model: Any, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


@contextmanager
def calibration_memory_errors() -> Iterator[None]:
    """Say what to do when the dense model and what is collected do not fit into a GPU."""
    with memory_errors(
        lambda: "the whole dense model runs there, with calibration_memory beside",
        "free memory of the GPU, lower calibration_memory (--calibration-memory), or calibrate on "
        "the CPU with calibration_device='cpu' (--calibration-device cpu)",
    ):
        yield

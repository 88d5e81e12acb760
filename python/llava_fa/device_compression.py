"""Compression on NVIDIA GPUs: from a weight there to a compressed matrix on the CPU.

The small parts of a low rank, and its factors as they are stored, are found on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from . import _core
from .arrays import Array
from .config import CompressionConfig
from .device_ops import cuda_unavailable_reason
from .device_weights import (
    check_weight,
    mebibytes,
    moment_on_cpu,
    plain_weight,
    refuse_capture,
    weight_arguments,
)
from .devices import memory_errors, named_device, torch_device
from .errors import DeviceError
from .matrix import CompressedMatrix, core_options

_ERROR_ROWS = 512


def compression_device(device: str | torch.device) -> torch.device:
    """Return the device that a run compresses on, with its number if it is a GPU.

    Raises
    ------
    ValueError
        It is neither the CPU nor an NVIDIA GPU of this machine.
    DeviceError
        No GPU can be used here.
    """
    chosen = named_device("device", device)
    if chosen.type == "cuda" and (reason := cuda_unavailable_reason()) is not None:
        raise DeviceError(f"device is '{chosen}', but no GPU can be used: {reason}")
    return torch_device("device", chosen)


def _memory_errors(what: Callable[[], str]) -> AbstractContextManager[None]:
    remedy = "free memory of the GPU, or compress on the CPU"
    return memory_errors(what, f"{remedy}; calibration_device='cpu' keeps the dense model away")


def to_device(weight: Tensor, device: torch.device) -> Tensor:
    """Return a weight on a device, or raise :class:`DeviceMemoryError` with the remedy."""
    with _memory_errors(lambda: f"the weight takes {mebibytes(weight.nbytes)}"):
        return weight.to(device)


def compress(
    weight: Tensor,
    config: CompressionConfig,
    input_second_moment: Array | None,
    output_second_moment: Array | None,
) -> tuple[_core.PackedMatrix, list[float]]:
    """Compress a weight (m, n) on its GPU, and wait for it.

    Returns
    -------
    The packed matrix and its objectives, as :class:`CompressedMatrix` keeps them.

    Raises
    ------
    NonFiniteError, ValueError, TypeError
        As :func:`llava_fa.compress_matrix`.
    DeviceMemoryError
        The GPU's memory is too full; the message says which options would fit.
    DeviceError
        The GPU cannot be used or reports an error, or its work is captured into a graph.
    """
    check_weight(weight)
    rows, cols = weight.shape
    device = weight.device
    compressor = _core.DeviceCompressor(rows, cols, core_options(config), device.index)
    moment = moment_on_cpu(input_second_moment)
    is_full = moment is not None and moment.ndim == 2
    needed = compressor.workspace_bytes(is_full)

    def what() -> str:
        fitting = _what_fits(weight, config, is_full)
        takes = f"takes {mebibytes(needed)} beside the weight"
        return f"compressing ({rows}, {cols}) {takes}, {fitting}"

    with torch.cuda.device(device), _memory_errors(what):
        refuse_capture("compression")
        plain = plain_weight(weight)
        workspace = torch.empty(needed, dtype=torch.uint8, device=device)
        return compressor.compress(
            **weight_arguments(plain),
            workspace=workspace.data_ptr(),
            workspace_bytes=needed,
            stream=torch.cuda.current_stream(device).cuda_stream,
            input_second_moment=moment,
            output_second_moment=moment_on_cpu(output_second_moment),
        )


def _what_fits(weight: Tensor, config: CompressionConfig, is_full: bool) -> str:
    """Say what memory is left, and which other options need no more."""
    rows, cols = weight.shape
    free = torch.cuda.mem_get_info(weight.device)[0]
    words = [f"{mebibytes(free)} are free"]
    changes: list[dict[str, Any]] = []
    if is_full and config.calibration == "hessian":
        changes.append({"calibration": "diagonal"})
    if config.rank:
        changes += [{"rank": 0}, *({"rank": 0, **change} for change in changes)]
    for change in changes:
        options = core_options(config.replace(**change))
        compressor = _core.DeviceCompressor(rows, cols, options, weight.device.index)
        needed = compressor.workspace_bytes(is_full and "calibration" not in change)
        if needed <= free:
            names = " and ".join(f"{name}={value!r}" for name, value in change.items())
            words.append(f"with {names} it would take {mebibytes(needed)}")
    return ", ".join(words)


def relative_error(matrix: CompressedMatrix, weight: Tensor) -> float:
    """Return :meth:`CompressedMatrix.relative_error` of a weight on a GPU, computed there."""
    if tuple(weight.shape) != matrix.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected {matrix.shape}")
    with _memory_errors(lambda: f"comparing {matrix.shape} takes its dense matrix"):
        decoded = matrix.dense(device=weight.device)
        energy = error = 0.0
        for first in range(0, matrix.shape[0], _ERROR_ROWS):
            rows = slice(first, first + _ERROR_ROWS)
            original = weight.detach()[rows].double()
            energy += original.square().sum().item()
            error += (original - decoded[rows]).square().sum().item()
    return error / energy if energy > 0 else error

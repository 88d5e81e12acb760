"""Weights and moments on NVIDIA GPUs: what is accepted, and how it is handed to the core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arrays import Array, dtype_name, exportable_or_none, is_on_gpu
from .errors import DeviceError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_weight(weight: Tensor) -> None:
    """Refuse what is no weight (m, n).

    Raises
    ------
    TypeError
        It has no real floating-point type.
    ValueError
        It is no matrix, or an empty one.
    """
    if weight.dtype not in _DTYPES:
        raise TypeError(f"weight has dtype {dtype_name(weight.dtype)}, expected a real float")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected (m, n)")


def plain_weight(weight: Tensor) -> Tensor:
    """Return a weight of a type and with strides that kernels read, itself where possible."""
    plain = weight.detach().resolve_neg()
    if plain.dtype == torch.float64:
        plain = plain.float()
    if plain.stride(1) != 1 or plain.stride(0) < plain.shape[1]:
        plain = plain.contiguous()
    return plain


def weight_arguments(plain: Tensor) -> dict[str, Any]:
    """Return how the core takes a plain weight, which must stay until it is read."""
    return {
        "weight": plain.data_ptr(),
        "weight_type": dtype_name(plain.dtype),
        "row_stride": max(plain.stride(0), plain.shape[1]),  # of a single row it says nothing
    }


def moment_on_cpu(moment: Array | None) -> Any:
    """Return a second moment as the core takes it, copied if it is on a GPU."""
    return exportable_or_none(moment.cpu() if is_on_gpu(moment) else moment)


def refuse_capture(what: str) -> None:
    """Raise :class:`DeviceError` while the current stream is captured into a graph."""
    if torch.cuda.is_current_stream_capturing():
        raise DeviceError(f"{what} waits for the GPU and so cannot be captured in a graph")


def mebibytes(nbytes: int) -> str:
    """Return a size for a message."""
    return f"{nbytes / 2**20:.0f} MiB"

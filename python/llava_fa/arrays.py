"""NumPy arrays and torch tensors on their way to the core and back, each as the kind it was."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Array: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
ArrayT = TypeVar("ArrayT", npt.NDArray[Any], torch.Tensor)


def is_torch(array: object) -> bool:
    """Whether an array came as a torch tensor."""
    return isinstance(array, torch.Tensor)


def is_on_gpu(array: object) -> TypeGuard[torch.Tensor]:
    """Whether an array is a tensor on an NVIDIA GPU."""
    return isinstance(array, torch.Tensor) and array.device.type == "cuda"


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return how the core calls a dtype."""
    return str(dtype).removeprefix("torch.")


def exportable(array: Any) -> Any:
    """Detach torch tensors and resolve lazy conjugation, so that DLPack can export them."""
    if isinstance(array, torch.Tensor):
        if array.device.type != "cpu":
            raise ValueError(f"tensor is on {array.device}, expected the CPU: call .cpu() first")
        return array.detach().resolve_conj().resolve_neg()
    if isinstance(array, np.ndarray):
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    raise TypeError(f"expected a NumPy array or a torch tensor, received {type(array).__name__}")


def exportable_or_none(array: Array | None) -> Any:
    """Return the same of an array that may be left out."""
    return None if array is None else exportable(array)


def as_kind(array: Any, as_torch: bool) -> Any:
    """Return what the core gave as the kind that the caller uses, without a copy."""
    return torch.from_numpy(array) if as_torch else array


def to_numpy(array: Array) -> npt.NDArray[Any]:
    """Return the values as NumPy, without a copy where that is possible."""
    exported = exportable(array)
    return exported.numpy() if isinstance(exported, torch.Tensor) else exported


def to_float64(array: Array) -> npt.NDArray[np.float64]:
    """Return a copy of the values in float64."""
    exported = exportable(array)
    if isinstance(exported, torch.Tensor):
        return exported.to(torch.float64, copy=True).numpy()
    return np.array(exported, dtype=np.float64)

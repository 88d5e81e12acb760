"""Which devices a run may name, and what to say when the memory of a GPU is too full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .errors import DeviceError, DeviceMemoryError


def named_device(option: str, device: str | torch.device) -> torch.device:
    """Return the CPU or GPU that an option names, which need not be there.

    Raises
    ------
    ValueError
        It is neither the CPU nor an NVIDIA GPU.
    """
    expected = "expected 'cpu', 'cuda' or 'cuda:0'"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{option} is {device!r}, {expected}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"{option} is '{chosen}', {expected}")
    return chosen


def torch_device(option: str, device: str | torch.device) -> torch.device:
    """Return a device that torch computes on, with its number if it is a GPU.

    Raises
    ------
    ValueError
        It is neither the CPU nor an NVIDIA GPU of this machine.
    DeviceError
        It is a GPU, and torch can use none.
    """
    chosen = named_device(option, device)
    if chosen.type == "cpu":
        return chosen
    if not torch.cuda.is_available():
        raise DeviceError(
            f"{option} is '{chosen}', but torch {torch.__version__} cannot use a GPU: install "
            f"torch for CUDA and for the driver that nvidia-smi shows, or choose {option}='cpu'"
        )
    if (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"{option} is '{chosen}', expected 'cuda:0' to 'cuda:{count - 1}'")
    return torch.device("cuda", chosen.index or 0)


@contextmanager
def memory_errors(what: Callable[[], str], remedy: str) -> Iterator[None]:
    """Say what needs the memory that a GPU does not have, and what to do."""
    try:
        yield
    except DeviceMemoryError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceMemoryError(f"{error}; {what()}: {remedy}") from error

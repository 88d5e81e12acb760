"""The library's exceptions. Every message says what was expected, what came, and what to do."""

from __future__ import annotations

import torch


class LlavaFaError(Exception):
    """Base class of all errors that the library raises on its own account."""


class NonFiniteError(LlavaFaError, ValueError):
    """A weight, activation or second moment holds NaN or infinity."""


class FormatError(LlavaFaError, ValueError):
    """Stored tensors or their header contradict the format (``docs/format.md``)."""


class DeviceError(LlavaFaError, RuntimeError):
    """A GPU cannot be used, or reported an error; the message says why, and what to do."""


class DeviceMemoryError(DeviceError, torch.cuda.OutOfMemoryError):
    """The memory of a GPU is too full for a product, a compression or a calibration."""


class CheckpointError(LlavaFaError):
    """A source or output folder is not a checkpoint that can be used."""


class DiskFullError(CheckpointError):
    """The disk filled up during a write; the message says of what, and what to do."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file or tensor that a checkpoint promises does not exist."""


class RecipeError(LlavaFaError, ValueError):
    """A recipe cannot be read, or one of its patterns matches nothing."""


class ResumeError(LlavaFaError):
    """A partial output belongs to another source or configuration."""


class BudgetError(LlavaFaError, ValueError):
    """A size target that cannot be met; ``minimum`` is the smallest possible one, in its unit."""

    def __init__(self, message: str, minimum: float) -> None:
        super().__init__(message)
        self.minimum = minimum


class PlanError(LlavaFaError, ValueError):
    """A plan file cannot be read, or does not fit the checkpoint or the request."""

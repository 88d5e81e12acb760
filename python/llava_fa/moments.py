"""Accumulates second moments of a layer's input, and keeps them on disk while they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import torch

from . import writer
from .shards import DTYPE_NAMES, TensorEntry, read_header, read_metadata

# Rows per product: bounds its float32 rounding error, and what float64 squares need at a time.
_ROWS = 1024
# Columns per product: bounds the temporary at 4·1024·n bytes and leaves out the lower triangle.
_COLUMNS = 1024
_TENSOR = "second_moment"
_CPU = torch.device("cpu")


class MeanSquares:
    """Accumulates ``E[x_j²]`` over the rows ``x`` of a layer's inputs, in float64.

    Parameters
    ----------
    size
        The layer's number of input features n.
    device
        Where the rows come from, and are added.
    """

    def __init__(self, size: int, device: torch.device = _CPU) -> None:
        self.count = 0
        self._sum = torch.zeros(size, dtype=torch.float64, device=device)

    @staticmethod
    def nbytes(size: int) -> int:
        """Bytes that an accumulator of n features needs."""
        return 8 * size

    @staticmethod
    def mean_nbytes(size: int) -> int:
        """Bytes that :meth:`mean` needs beside."""
        return 8 * size

    def add(self, rows: torch.Tensor) -> None:
        """Add inputs of shape (rows, n)."""
        for block in torch.split(rows, _ROWS):
            self._sum += block.to(self._sum.device, torch.float64).square().sum(0)
        self.count += rows.shape[0]

    def mean(self) -> torch.Tensor:
        """Return the mean squares, float64 of shape (n,), on the CPU."""
        return (self._sum / max(1, self.count)).cpu()


class SecondMoment:
    """Accumulates the full second moment ``E[xxᵀ]`` over the rows ``x`` of a layer's inputs.

    Blocks of 1024 rows are multiplied in float32, because a product in float64 takes at least
    twice as long; their sum is kept in float64, because a float32 sum would lose more the more
    blocks there are. The relative error stays that of one block, about ``1024^½ · 2⁻²⁴``. Only the
    upper triangle is computed, panel by panel.

    Parameters
    ----------
    size
        The layer's number of input features n.
    device
        Where the rows come from, and are multiplied.
    """

    def __init__(self, size: int, device: torch.device = _CPU) -> None:
        self.count = 0
        self._sum = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._waiting: list[torch.Tensor] = []
        self._waiting_rows = 0

    @staticmethod
    def nbytes(size: int) -> int:
        """Bytes that an accumulator of n features needs: sums, waiting rows and one product."""
        return 8 * size * size + 4 * size * (2 * _ROWS + _COLUMNS)

    @staticmethod
    def mean_nbytes(size: int) -> int:
        """Bytes that :meth:`mean` needs beside: the result and one panel."""
        return 4 * size * size + 12 * size * min(size, _COLUMNS)

    def add(self, rows: torch.Tensor) -> None:
        """Add inputs of shape (rows, n).

        Short inputs wait until there are enough rows for a product: adding to n² sums costs as
        much as a product of a few dozen rows.
        """
        self.count += rows.shape[0]
        for block in torch.split(rows, _ROWS):
            self._waiting.append(block.to(self._sum.device, torch.float32, copy=True))
            self._waiting_rows += block.shape[0]
            if self._waiting_rows >= _ROWS:
                self._multiply()

    def _multiply(self) -> None:
        rows = torch.cat(self._waiting)
        self._waiting, self._waiting_rows = [], 0
        for begin, end in self._panels():
            self._sum[begin:end, begin:] += rows[:, begin:end].T @ rows[:, begin:]

    def _panels(self) -> Iterator[tuple[int, int]]:
        size = self._sum.shape[0]
        return ((begin, min(begin + _COLUMNS, size)) for begin in range(0, size, _COLUMNS))

    def mean(self) -> torch.Tensor:
        """Return the second moment, float32 of shape (n, n), exactly symmetric, on the CPU."""
        if self._waiting:
            self._multiply()
        result = torch.empty_like(self._sum, dtype=torch.float32)
        for begin, end in self._panels():
            panel = (self._sum[begin:end, begin:] / max(1, self.count)).to(torch.float32)
            square = panel[:, : end - begin]
            square.copy_(square.triu() + square.triu(1).T)
            result[begin:end, begin:] = panel
            result[begin:, begin:end] = panel.T
        return result.cpu()


Accumulator: TypeAlias = MeanSquares | SecondMoment


@dataclass(frozen=True)
class LayerMoment:
    """What is known about one layer's input.

    ``values`` is the (n, n) second moment or the (n,) mean squares, ``rows`` how many inputs they
    are averaged over.
    """

    values: torch.Tensor
    rows: int

    @property
    def kind(self) -> str:
        """``"full"`` or ``"diagonal"``."""
        return "full" if self.values.ndim == 2 else "diagonal"

    def reduced(self, full: bool) -> LayerMoment:
        """Return what a layer wants: all of it, or the diagonal, in float64."""
        if full or self.values.ndim == 1:
            return self
        return LayerMoment(self.values.diagonal().to(torch.float64), self.rows)


class MomentSource(Protocol):
    """Where the compression of a matrix finds the second moment of its input."""

    def find(self, layer: str) -> LayerMoment | None:
        """Return a layer's second moment, or None if it saw no data."""


class MomentStore(Protocol):
    """Keeps second moments by the number of their input while a group of layers needs them."""

    def __contains__(self, number: int) -> bool:
        """Whether a moment is kept."""

    def write(self, number: int, moment: LayerMoment) -> None:
        """Keep a moment."""

    def read(self, number: int) -> LayerMoment:
        """Return a moment that is kept."""

    def drop(self, number: int) -> None:
        """Forget a moment."""


class MomentMemory:
    """Second moments in memory: those of one group, for a run that leaves nothing behind."""

    def __init__(self) -> None:
        self._moments: dict[int, LayerMoment] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._moments

    def write(self, number: int, moment: LayerMoment) -> None:
        """Keep a moment."""
        self._moments[number] = moment

    def read(self, number: int) -> LayerMoment:
        """Return a moment that is kept."""
        return self._moments[number]

    def drop(self, number: int) -> None:
        """Forget a moment."""
        del self._moments[number]


class MomentFolder:
    """Second moments on disk, one file per distinct input, by the input's number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, number: int) -> Path:
        """Return where the moment of input ``number`` is kept."""
        return self._folder / f"moment-{number:05d}.safetensors"

    def __contains__(self, number: int) -> bool:
        return self.path(number).exists()

    def write(self, number: int, moment: LayerMoment) -> None:
        """Keep a moment."""
        values, path = moment.values, self.path(number)
        data = writer.tensor_bytes(values)
        dtype = DTYPE_NAMES[values.dtype]
        entry = TensorEntry(_TENSOR, dtype, tuple(values.shape), path, 0, len(data))
        header = writer.header_bytes([entry], {"rows": str(moment.rows)})
        with writer.atomic_file(path, "a second moment", len(header) + len(data)) as write:
            write(header)
            write(data)

    def read(self, number: int) -> LayerMoment:
        """Return a moment that is kept."""
        return LayerMoment(self.entry(number).read(), self.rows(number))

    def rows(self, number: int) -> int:
        """Return how many inputs a moment is averaged over; 0 if there were none."""
        return int(read_metadata(self.path(number))["rows"])

    def entry(self, number: int) -> TensorEntry:
        """Return where the bytes of a moment lie."""
        return read_header(self.path(number))[_TENSOR]

    def drop(self, number: int) -> None:
        """Forget a moment."""
        writer.remove([self.path(number)])

"""Affine grids of groups of weights: by minimum and maximum, or clipped by search.

Every method that rounds to uniform levels shares these grids, and with them the way of counting:
a float16 scale and a ``bits``-bit zero point per group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKS = tuple(1 - step / 100 for step in range(80))
"""Shares of the full range that the search for a clipped range tries, as GPTQ's own code does."""

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16; keeps groups of zeros from dividing by zero."""


@dataclass(frozen=True)
class Grid:
    """Uniform levels ``(code - zero) * scale`` with codes 0 to ``levels``.

    Attributes
    ----------
    scale, zero : Tensor
        One entry per group; any shape that broadcasts against the values to round.
    levels : int
        The largest code, ``2**bits - 1``.
    """

    scale: Tensor
    zero: Tensor
    levels: int

    def round(self, values: Tensor) -> Tensor:
        """Return the nearest levels to ``values``, as values."""
        codes = (values / self.scale + self.zero).round().clamp(0, self.levels)
        return (codes - self.zero) * self.scale

    def where(self, condition: Tensor, other: Grid) -> Grid:
        """Return this grid where ``condition`` holds, else the other."""
        return Grid(
            torch.where(condition, self.scale, other.scale),
            torch.where(condition, self.zero, other.zero),
            self.levels,
        )


def cut(values: Tensor, size: int) -> Tensor:
    """Cut rows into groups: (rows, groups, size), a short last group filled with its end."""
    missing = -values.shape[1] % size
    filled = torch.cat([values, values[:, -1:].expand(-1, missing)], dim=1)
    return filled.reshape(values.shape[0], -1, size)


def uncut(groups: Tensor, columns: int) -> Tensor:
    """Undo ``cut``."""
    return groups.reshape(len(groups), -1)[:, :columns]


def group_bits(rows: int, columns: int, bits: int, size: int) -> int:
    """Count all bits of a matrix: codes, and per group a float16 scale and a zero point."""
    return rows * columns * bits + rows * -(-columns // size) * (16 + bits)


def range_grid(values: Tensor, bits: int, shrink: float = 1.0, upward: bool | None = None) -> Grid:
    """Span the range of the last axis, which always holds zero, times ``shrink``.

    The scale is rounded to float16, the zero point to a code, as they are stored: to the nearest
    code, or upward or downward if ``upward`` says so.
    """
    levels = 2**bits - 1
    low = shrink * values.amin(dim=-1, keepdim=True).clamp_max(0)
    high = shrink * values.amax(dim=-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / levels).clamp_min(SMALLEST_SCALE).half().to(values.dtype)
    exact = -low / scale
    zero = exact.round() if upward is None else exact.ceil() if upward else exact.floor()
    return Grid(scale, zero.clamp(0, levels), levels)


def candidate_grids(values: Tensor, bits: int, step: int = 1) -> Iterator[Grid]:
    """Yield the grids that a search tries: shrunk ranges, both neighbouring zero points.

    The full range with the nearest zero point comes first; ``step`` takes every so manieth share.
    """
    yield range_grid(values, bits)
    for shrink in SHRINKS[::step]:
        for upward in (False, True):
            yield range_grid(values, bits, shrink, upward)


def searched_grid(
    values: Tensor, bits: int, importance: Tensor | None = None, norm: float = 2.0
) -> Grid:
    """Return the clipped grid of least ``sum importance |error|^norm`` over the last axis."""
    best = range_grid(values, bits)
    least = torch.full_like(best.scale, torch.inf)
    for grid in candidate_grids(values, bits):
        error = (values - grid.round(values)).abs().pow(norm)
        if importance is not None:
            error = error * importance.to(values.dtype)
        total = error.sum(dim=-1, keepdim=True)
        best = grid.where(total < least, best)
        least = torch.minimum(total, least)
    return best

"""What the passes keep of the inputs they see: which rows count, and the accumulators."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .errors import NonFiniteError
from .moments import Accumulator, MeanSquares, SecondMoment
from .trace import Trace


def wants_full(trace: Trace, number: int, full: Mapping[str, bool]) -> bool:
    """Whether any layer that shares the input wants its full second moment."""
    return any(full[layer] for layer in trace.inputs[number].layers)


def accumulator_type(trace: Trace, number: int, full: Mapping[str, bool]) -> type[Accumulator]:
    """Return the kind of accumulator that an input needs for the layers that share it."""
    return SecondMoment if wants_full(trace, number, full) else MeanSquares


def check_finite(layer: str, rows: torch.Tensor) -> None:
    """Refuse inputs with NaN or infinity, naming the layer."""
    if not bool(torch.isfinite(rows).all()):
        raise NonFiniteError(
            f"layer {layer}: its input holds NaN or infinity on the calibration data; check "
            "the examples, or load the model in a wider type"
        )


def unmasked_rows(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Flatten to rows of features, without padded positions where the mask fits the shape.

    A vision tower's positions have another count than the prompt's tokens, and no padding.
    """
    if mask is not None and mask.ndim == 2 and values.shape[:-1] == mask.shape:
        return values[mask.to(values.device) != 0]
    return values.reshape(-1, values.shape[-1])


class Collected:
    """Accumulators that the first pass opens when it meets an input, while memory lasts.

    Parameters
    ----------
    full
        The layers of interest and whether their full second moment is wanted.
    memory
        Bytes for all accumulators together; if they take more, none is kept.

    Attributes
    ----------
    mask : torch.Tensor or None
        The attention mask of the example that runs.
    """

    def __init__(self, full: Mapping[str, bool], memory: int) -> None:
        self.mask: torch.Tensor | None = None
        self._full, self._memory = full, memory
        self._taken = self._mean = 0
        self._by_leader: dict[str, Accumulator] = {}

    def observe(self, leader: str, values: torch.Tensor) -> int:
        """Add an input; return how many of its rows count."""
        rows = unmasked_rows(values, self.mask)
        check_finite(leader, rows)
        if leader not in self._by_leader and self._fits():
            kind, size = SecondMoment if self._full[leader] else MeanSquares, rows.shape[-1]
            self._taken += kind.nbytes(size)
            self._mean = max(self._mean, kind.mean_nbytes(size))
            if self._fits():
                self._by_leader[leader] = kind(size, rows.device)
            else:
                self._by_leader.clear()
        if leader in self._by_leader:
            self._by_leader[leader].add(rows)
        return rows.shape[0]

    def _fits(self) -> bool:
        return self._taken + self._mean <= self._memory

    def by_number(self, trace: Trace) -> dict[int, Accumulator]:
        """Return those that are of use: a layer that shares the input may want more of it."""
        found = {n: self._by_leader.get(i.leader) for n, i in enumerate(trace.inputs)}
        return {
            number: moment
            for number, moment in found.items()
            if moment and isinstance(moment, SecondMoment) == wants_full(trace, number, self._full)
        }

"""Streams second moments to the compression, a group of layers at a time, in bounded memory.

1. The first pass runs every example and finds the structure (``calibration.json`` in the state). If
   all moments fit into the memory, it collects them too.
2. Otherwise inputs are taken in order of execution, in groups that fit, one pass for each.
3. A group's moments go to disk (``moment-NUMBER.safetensors``), its layers are compressed, the
   moments are deleted, unless they are to be saved for later runs.

In one-pass order all inputs are those of the dense model. In sequential order every group is one
input, whatever the memory, and the layers before it have been compressed: so neither order's result
depends on the memory, nor on an interruption.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import writer
from .collected import accumulator_type, wants_full
from .dense_model import calibration_memory_errors
from .errors import NonFiniteError
from .moments import Accumulator, LayerMoment, MomentFolder, MomentMemory, MomentStore
from .passes import ForwardPasses
from .trace import Trace

ORDERS = ("one-pass", "sequential")
DEFAULT_MEMORY = "4GB"


@dataclass(frozen=True)
class CalibrationOptions:
    """How second moments are collected.

    Parameters
    ----------
    order
        ``"one-pass"``: the inputs are those of the dense model. ``"sequential"``: those that the
        layers compressed before give.
    memory
        Bytes for accumulators and remembered hidden states together, beside the model.
    keep
        Keep all moments until :meth:`Calibration.drop_all`, so that they can be saved.
    """

    order: str
    memory: int
    keep: bool = False

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"calibration_order is {self.order!r}, expected one of {ORDERS}")


class Calibration:
    """The second moments of one run.

    Parameters
    ----------
    folder
        Where the state is kept; None keeps a group's moments in memory and nothing of the rest.
    make_passes
        Loads the dense model; called only if a forward pass is needed.
    full
        The layers to be compressed, and whether their full second moment is wanted.
    decoded
        Returns the decoded weight of a layer that is finished, or None.
    """

    def __init__(
        self,
        folder: Path | None,
        make_passes: Callable[[], ForwardPasses],
        full: Mapping[str, bool],
        decoded: Callable[[str], torch.Tensor | None],
        options: CalibrationOptions,
    ) -> None:
        self._path = folder / "calibration.json" if folder else None
        self.moments: MomentStore = MomentFolder(folder) if folder else MomentMemory()
        self._make_passes = make_passes
        self._full, self._decoded, self._options = full, decoded, options
        self._loaded: ForwardPasses | None = None
        self.trace = self._known_trace() or self._first_pass()
        self._numbers = {
            layer: number for number, i in enumerate(self.trace.inputs) for layer in i.layers
        }
        self._warn()

    def find(self, layer: str) -> LayerMoment | None:
        """Return a layer's moment while it is there; None if the layer saw no data."""
        number = self._numbers.get(layer)
        if number is None or number not in self.moments:
            return None
        moment = self.moments.read(number)
        return moment.reduced(self._full[layer]) if moment.rows else None

    def groups(self, pending: Collection[str]) -> Iterator[list[str]]:
        """Collect moments and yield the layers, among ``pending``, that can now be compressed.

        They must be finished when the next group is asked for.
        """
        groups = self._grouped(pending)
        for position, group in enumerate(groups):
            following = groups[position + 1] if position + 1 < len(groups) else ()
            self._collect(group, following, f"{position + 1} of {len(groups)}")
            if not following:
                self._loaded = None  # the model's memory, which the matrices may need
            layers = [layer for number in group for layer in self.trace.inputs[number].layers]
            yield [layer for layer in layers if layer in pending]
            if self._options.order == "sequential" and self._loaded is not None:
                self._install(layers)
            if not self._options.keep:
                self._drop(group)
        self._loaded = None

    def drop_all(self) -> None:
        """Delete the moments that were kept."""
        self._drop(range(len(self.trace.inputs)))

    def _drop(self, numbers: Collection[int]) -> None:
        for number in numbers:
            if number in self.moments:
                self.moments.drop(number)

    # Structure

    def _known_trace(self) -> Trace | None:
        if self._path is None:
            return None
        try:
            return Trace.from_dict(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return None

    def _first_pass(self) -> Trace:
        one_pass = self._options.order == "one-pass"
        passes = self._passes()
        with calibration_memory_errors():
            trace, found = passes.trace(self._full, self._options.memory if one_pass else 0)
            if self._path is not None:
                writer.write_json(self._path, trace.to_dict())
            self._write(trace, found)
        return trace

    def _warn(self) -> None:
        unseen = [layer for layer in self._full if layer not in self._numbers]
        if unseen:
            warnings.warn(
                f"{len(unseen)} layer(s) saw no calibration data and are compressed without: "
                + ", ".join(unseen),
                stacklevel=2,
            )
        few = [
            i
            for number, i in enumerate(self.trace.inputs)
            if i.rows < i.size and wants_full(self.trace, number, self._full)
        ]
        if few:
            warnings.warn(
                f"{len(few)} input(s) of layers saw fewer rows than they have channels, first "
                f"{few[0].leader}: {few[0].rows} rows, {few[0].size} channels; their second "
                "moments are singular, so use more or longer calibration examples",
                stacklevel=2,
            )

    # Groups

    def _grouped(self, pending: Collection[str]) -> list[list[int]]:
        """Split the inputs that are still needed, in order of execution."""
        needed = [
            number
            for number, i in enumerate(self.trace.inputs)
            if any(layer in pending for layer in i.layers)
            or (self._options.keep and number not in self.moments)
        ]
        if self._options.order == "sequential":
            return [[number] for number in needed]
        ready = [number for number in needed if number in self.moments]
        rest = self._packed([number for number in needed if number not in self.moments])
        return [ready, *rest] if ready else rest

    def _packed(self, numbers: Sequence[int]) -> list[list[int]]:
        """Fill groups up to the memory that the remembered states leave; at least one input."""
        groups: list[list[int]] = []
        room = self._options.memory - (self.trace.state_bytes if self._remembers else 0)
        taken = mean = 0
        for number in numbers:
            kind = accumulator_type(self.trace, number, self._full)
            size = self.trace.inputs[number].size
            taken, mean = taken + kind.nbytes(size), max(mean, kind.mean_nbytes(size))
            if not groups or taken + mean > room:
                groups.append([])
                taken, mean = kind.nbytes(size), kind.mean_nbytes(size)
            groups[-1].append(number)
        return groups

    @property
    def _remembers(self) -> bool:
        """Whether remembered states leave half of the memory or more to the moments."""
        return 2 * self.trace.state_bytes <= self._options.memory

    def _collect(self, group: Sequence[int], following: Sequence[int], title: str) -> None:
        missing = [number for number in group if number not in self.moments]
        if not missing:
            return
        passes = self._passes()
        # What runs before the first of these layers is final now. In one-pass order all else is
        # final too, so the next pass may begin at its own first layer.
        start = passes.marked
        mark: str | None = self.trace.unit(missing[0])
        if self._options.order == "one-pass":
            mark = self.trace.unit(following[0]) if following else None
        with calibration_memory_errors():
            found = passes.collect(
                self.trace,
                missing,
                self._full,
                start=start,
                mark=mark if self._remembers else None,
                title=title,
            )
            self._write(self.trace, found)

    def _write(self, trace: Trace, found: dict[int, Accumulator]) -> None:
        """Store moments, freeing each accumulator: its mean takes half as much again."""
        for number in sorted(found):
            moment = found.pop(number)
            values = moment.mean()
            if not bool(torch.isfinite(values).all()):
                raise NonFiniteError(
                    f"layer {trace.inputs[number].leader}: the squares of its inputs overflow on "
                    "the calibration data; check the examples"
                )
            self.moments.write(number, LayerMoment(values, moment.count))

    # Model

    def _passes(self) -> ForwardPasses:
        if self._loaded is None:
            self._loaded = self._make_passes()
            if self._options.order == "sequential":
                self._install(self._full)
        return self._loaded

    def _install(self, layers: Collection[str]) -> None:
        """Give the calibration model the decoded weights of finished layers."""
        assert self._loaded is not None
        for layer in layers:
            weight = self._decoded(layer)
            if weight is not None:
                module: Any = self._loaded.model.get_submodule(layer)
                with torch.no_grad(), calibration_memory_errors():
                    module.weight.copy_(weight)

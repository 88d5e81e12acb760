"""What forward passes call: the layers' distinct inputs, their order, and chains of blocks.

Found by watching one full forward pass per example, never by names:

- layers share an input if, within one call of their parent module, they receive the same tensor
  (same storage, shape and version), in every call of every example;
- the children of an ``nn.ModuleList`` are a chain if each is called at most once per example, in
  their order, with and returning a hidden state of the same form, and mostly the output of one is
  the very tensor that the next receives (some models add visual features between a few of them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LayerInput:
    """One distinct input: the layers that share it (the first receives it first) and its size n.

    ``rows`` counts the inputs that all examples together give.
    """

    layers: tuple[str, ...]
    size: int
    rows: int

    @property
    def leader(self) -> str:
        """The layer at which the input is observed."""
        return self.layers[0]


@dataclass(frozen=True)
class Trace:
    """The structure of the forward passes over a set of examples.

    Parameters
    ----------
    inputs
        Distinct inputs in order of execution.
    sequences
        The different orders in which leaders and blocks were called, call by call.
    kinds
        For every example the number of its sequence.
    blocks
        Blocks of chains, by module name: how many elements their output tuple has, 0 if it is a
        tensor.
    state_bytes
        What remembering the tensor at the entrance of one unit takes, for all examples together;
        the most over all units.
    """

    inputs: tuple[LayerInput, ...]
    sequences: tuple[tuple[str, ...], ...]
    kinds: tuple[int, ...]
    blocks: dict[str, int]
    state_bytes: int

    def sequence(self, example: int) -> tuple[str, ...]:
        """Return what one example calls."""
        return self.sequences[self.kinds[example]]

    def unit(self, number: int) -> str:
        """Return where a pass for input ``number`` can begin: its innermost block, or its layer."""
        leader = self.inputs[number].leader
        around = [block for block in self.blocks if leader.startswith(f"{block}.")]
        return max(around, key=len, default=leader)

    def skippable(self, example: int, start: str) -> list[str]:
        """Return the blocks that an example leaves before it enters ``start``."""
        sequence = self.sequence(example)
        before = sequence[: sequence.index(start)]
        return [name for name in before if name in self.blocks and not start.startswith(f"{name}.")]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trace:
        """Inverse of :meth:`to_dict`."""
        return cls(
            tuple(LayerInput(tuple(i["layers"]), i["size"], i["rows"]) for i in values["inputs"]),
            tuple(tuple(sequence) for sequence in values["sequences"]),
            tuple(values["kinds"]),
            dict(values["blocks"]),
            values["state_bytes"],
        )


class UnsharedInputError(Exception):
    """A layer that seemed to share another's input received something else."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


class Tracer:
    """Watches forward passes; one instance per set of examples.

    Parameters
    ----------
    names
        The linear layers of interest.
    separate
        Layers that are known to share no input.
    observe
        Told the leader and the tensor whenever a distinct input is received; returns the number
        of rows that count.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        separate: frozenset[str],
        observe: Callable[[str, torch.Tensor], int],
    ) -> None:
        self._model, self._names = model, tuple(names)
        self._separate, self._observe = separate, observe
        self._leaders: dict[str, str] = {}
        self._calls: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        # Inputs received in calls of parents that have not returned.
        self._open: dict[str, list[tuple[str, _Seen]]] = {}
        self._chains = {
            name: _Chain(name)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
        }
        self._sequence: list[str] = []
        self._sequences: dict[tuple[str, ...], int] = {}
        self._kinds: list[int] = []
        self._state_bytes: Counter[str] = Counter()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Install the hooks for a while."""
        handles = []
        for name in self._names:
            module = self._model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(self._at_layer(name), with_kwargs=True))
        for parent in {_parent(name) for name in self._names}:
            module = self._model.get_submodule(parent)
            handles.append(module.register_forward_pre_hook(self._at_entry(parent)))
            handles.append(module.register_forward_hook(self._at_exit(parent)))
        for chain in self._chains.values():
            blocks: Any = self._model.get_submodule(chain.name)
            for index, block in enumerate(blocks):
                if f"{chain.name}.{index}" in self._names:
                    continue  # a list of bare layers
                before, after = self._at_block(chain, index)
                handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(block.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def end_example(self) -> None:
        """Draw conclusions after the forward pass of one example."""
        for layer, leader in self._leaders.items():
            if self._calls[layer] != self._calls[leader]:
                raise UnsharedInputError(layer)
        kind = self._sequences.setdefault(tuple(self._sequence), len(self._sequences))
        self._kinds.append(kind)
        self._sequence = []
        self._open.clear()
        for chain in self._chains.values():
            chain.end_example()

    def result(self) -> Trace:
        """Return what was found."""
        blocks = {
            f"{chain.name}.{index}": length
            for chain in self._chains.values()
            if chain.holds
            for index, length in chain.lengths.items()
        }
        known = blocks.keys() | set(self._leaders.values())
        sequences = [tuple(n for n in sequence if n in known) for sequence in self._sequences]
        order = [name for name in merged_order(sequences) if name not in blocks]
        inputs = tuple(self._layer_input(leader) for leader in order)
        trace = Trace(inputs, tuple(sequences), tuple(self._kinds), blocks, 0)
        units = {trace.unit(number) for number in range(len(inputs))}
        return replace(trace, state_bytes=max((self._state_bytes[u] for u in units), default=0))

    def _layer_input(self, leader: str) -> LayerInput:
        layers = tuple(name for name, first in self._leaders.items() if first == leader)
        module: Any = self._model.get_submodule(leader)
        return LayerInput(layers, module.in_features, self._rows[leader])

    def _at_layer(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = layer_input(args, kwargs)
            self._calls[name] += 1
            if self._leader(name, values) == name:
                self._sequence.append(name)
                self._state_bytes[name] += values.nbytes
                self._rows[name] += self._observe(name, values)

        return hook

    def _leader(self, name: str, values: torch.Tensor) -> str:
        """Return the layer whose input this is, and remember it if it is a new one."""
        received = self._open.get(_parent(name), [])
        matching = [leader for leader, seen in received if seen.is_same(values)]
        if name not in self._leaders:
            shares = matching and name not in self._separate
            self._leaders[name] = matching[0] if shares else name
        leader = self._leaders[name]
        if leader == name:
            received.append((name, _Seen(values)))
        elif leader not in matching:
            raise UnsharedInputError(name)
        return leader

    def _at_entry(self, parent: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._open[parent] = []

        return hook

    def _at_exit(self, parent: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._open.pop(parent, None)

        return hook

    def _at_block(self, chain: _Chain, index: int) -> tuple[Callable[..., None], ...]:
        name = f"{chain.name}.{index}"

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._sequence.append(name)
            state = block_input(args, kwargs)
            chain.enter(index, state)
            self._state_bytes[name] += state.nbytes if state is not None else 0

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            chain.leave(index, output)

        return before, after


class _Seen:
    """A tensor as it was at some moment; holds it, so that its memory is not used again."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._version = values, _version(values)

    def is_same(self, other: torch.Tensor) -> bool:
        mine = self._values
        same_memory = other is mine or (
            other.untyped_storage().data_ptr() == mine.untyped_storage().data_ptr()
            and other.storage_offset() == mine.storage_offset()
            and other.stride() == mine.stride()
            and other.shape == mine.shape
            and other.dtype == mine.dtype
        )
        return same_memory and _version(other) == self._version


def _version(values: torch.Tensor) -> int:
    # Tensors made in inference mode, which a model may enter by itself, do not count changes.
    return 0 if values.is_inference() else values._version


class _Chain:
    """Whether the children of one module list were called one after another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lengths: dict[int, int] = {}
        self._broken = False
        self._links = self._breaks = 0
        self._index = -1
        self._input: torch.Tensor | None = None
        self._output: _Seen | None = None

    @property
    def holds(self) -> bool:
        return not self._broken and self._links >= self._breaks

    def enter(self, index: int, state: torch.Tensor | None) -> None:
        first = self._index < 0
        follows = self._output is not None and state is not None and self._output.is_same(state)
        self._links += follows
        self._breaks += not (first or follows)
        self._broken |= state is None or index <= self._index
        self._index, self._input, self._output = index, state, None

    def leave(self, index: int, output: Any) -> None:
        state, length = _state_of(output)
        fits = (
            state is not None
            and self._input is not None
            and state.shape == self._input.shape
            and state.dtype == self._input.dtype
        )
        same_form = self.lengths.setdefault(index, length) == length
        self._broken |= not fits or not same_form or index != self._index
        self._output = _Seen(state) if state is not None else None

    def end_example(self) -> None:
        self._index, self._input, self._output = -1, None, None


def _state_of(output: Any) -> tuple[torch.Tensor | None, int]:
    """Return the hidden state in a block's output and the length of the tuple, 0 for a tensor."""
    if isinstance(output, torch.Tensor):
        return output, 0
    if type(output) is tuple and output and isinstance(output[0], torch.Tensor):
        return (output[0] if all(rest is None for rest in output[1:]) else None), len(output)
    return None, 0


def block_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the hidden state that a block is called with; None if it cannot be told."""
    value = args[0] if args else kwargs.get("hidden_states")
    return value if isinstance(value, torch.Tensor) else None


def layer_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return what a linear layer is called with."""
    value: torch.Tensor = args[0] if args else kwargs["input"]
    return value


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def merged_order(sequences: Iterable[Sequence[str]]) -> list[str]:
    """Merge orders of first calls: names unknown so far come before what follows them.

    Examples
    --------
    >>> merged_order([["text"], ["image", "text"]])
    ['image', 'text']
    """
    order: list[str] = []
    for sequence in sorted(sequences, key=lambda names: -len(set(names))):
        position = len(order)
        for name in reversed(list(dict.fromkeys(sequence))):
            if name in order:
                position = order.index(name)
            else:
                order.insert(position, name)
    return order

"""What was made from tensors, remembered as long as they live and stay unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import ref

from torch import Tensor

T = TypeVar("T")


class _Entry(NamedTuple):
    """A value with what tells whether it is still that of its tensors.

    ``held`` are aliases: while they live, no other tensor can have the same address.
    """

    key: ref[Tensor]
    stamp: list[tuple[int, int]]
    held: list[Tensor]
    value: Any


class Remembered(Generic[T]):
    """Values by one of their tensors, so that layers hold tensors only, and are copied and pickled.

    Not for tensors of inference mode, whose changes torch does not count.
    """

    def __init__(self) -> None:
        # By the tensors' identities: torch's dictionary of tensors makes several calls in Python to
        # find one. An entry goes with its tensor, before another can have its identity.
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Tensor, tensors: Sequence[Tensor], make: Callable[[list[Tensor]], T]) -> T:
        """Return the value of ``tensors``, made from aliases of them unless it is known."""
        stamp = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        entry = self._entries.get(id(key))
        if entry is None or entry.stamp != stamp:
            held = [tensor.detach() for tensor in tensors]
            entry = _Entry(ref(key, partial(self._forget, id(key))), stamp, held, make(held))
            self._entries[id(key)] = entry
        value: T = entry.value
        return value

    def _forget(self, identity: int, dead: ref[Tensor]) -> None:
        entry = self._entries.get(identity)
        if entry is not None and entry.key is dead:
            del self._entries[identity]

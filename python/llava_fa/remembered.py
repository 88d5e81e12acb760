"""What was made from tensors, remembered as long as they live and stay unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class _Entry(NamedTuple):
    """A value with what tells whether it is still that of its tensors.

    ``held`` are aliases: while they live, no other tensor can have the same address.
    """

    stamp: tuple[tuple[int, int], ...]
    held: list[Tensor]
    value: Any


class Remembered(Generic[T]):
    """Values by one of their tensors, so that layers hold tensors only, and are copied and pickled.

    Not for tensors of inference mode, whose changes torch does not count.
    """

    def __init__(self) -> None:
        self._entries: Any = WeakTensorKeyDictionary()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Tensor, tensors: Sequence[Tensor], make: Callable[[list[Tensor]], T]) -> T:
        """Return the value of ``tensors``, made from aliases of them unless it is known."""
        stamp = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        entry: _Entry | None = self._entries.get(key)
        if entry is None or entry.stamp != stamp:
            held = [tensor.detach() for tensor in tensors]
            entry = _Entry(stamp, held, make(held))
            self._entries[key] = entry
        value: T = entry.value
        return value

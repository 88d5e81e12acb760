"""Several matrices at a time on a GPU: while one is computed, others are read, copied and written.

Each has a thread and a stream of its own, so that what one waits for is time for the others. On the
CPU, where one matrix occupies all cores, they follow each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import torch

from .errors import DeviceMemoryError
from .partial import Part

# One that is read or copied, one that is computed, one that is compared or written.
IN_FLIGHT = 3


class PartsInFlight:
    """Makes parts by their numbers, those that are expected before they are asked for.

    Parameters
    ----------
    make
        Makes one part. For a GPU it is called on several threads at a time.
    device
        Where it computes.
    """

    def __init__(self, make: Callable[[int], Part], device: torch.device) -> None:
        self._make = make
        self._waiting: deque[int] = deque()
        self._begun: dict[int, Future[Part]] = {}
        self._pool: ThreadPoolExecutor | None = None
        if device.type != "cpu":
            self._pool = ThreadPoolExecutor(IN_FLIGHT, initializer=lambda: use_own_stream(device))

    def __enter__(self) -> PartsInFlight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Wait for parts that were begun, which a resumed run will find, and begin no others."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def expect(self, numbers: Iterable[int]) -> None:
        """Name the parts that are asked for next, in this order."""
        self._waiting.extend(numbers)

    def __call__(self, number: int) -> Part:
        """Return a part, or raise what making it raised."""
        if self._pool is None or number not in {*self._waiting, *self._begun}:
            return self._make(number)
        while self._waiting and (len(self._begun) < IN_FLIGHT or number not in self._begun):
            following = self._waiting.popleft()
            self._begun[following] = self._pool.submit(self._make, following)
        try:
            return self._begun.pop(number).result()
        except DeviceMemoryError:
            wait(self._begun.values())  # it may fit alone
            return self._make(number)


def use_own_stream(device: torch.device) -> None:
    """Make a new stream the calling thread's current one."""
    stream: Any = torch.cuda.Stream
    torch.cuda.set_stream(stream(device))

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

from .errors import DeviceError, DeviceMemoryError
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
        self._places: dict[int, int] = {}  # in the order in which they are asked for
        self._waiting: deque[int] = deque()
        self._begun: dict[int, Future[Part]] = {}
        self._pool: ThreadPoolExecutor | None = None
        if device.type != "cpu":
            self._pool = ThreadPoolExecutor(IN_FLIGHT, initializer=own_streams(device, IN_FLIGHT))

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
        for number in numbers:
            self._places[number] = len(self._places)
            self._waiting.append(number)

    def __call__(self, number: int) -> Part:
        """Return a part, or raise what making it raised."""
        if self._pool is None or number not in {*self._waiting, *self._begun}:
            return self._make(number)
        self._pass_by(number)
        while self._waiting and (len(self._begun) < IN_FLIGHT or number not in self._begun):
            following = self._waiting.popleft()
            self._begun[following] = self._pool.submit(self._make, following)
        part = self._result(number)
        return self._make_alone(number) if part is None else part

    def _pass_by(self, number: int) -> None:
        """Forget what comes before a part: its threads saved it, and it was found there."""
        place = self._places[number]
        for earlier in [other for other in self._begun if self._places[other] < place]:
            del self._begun[earlier]
        while self._waiting and self._places[self._waiting[0]] < place:
            self._waiting.popleft()

    def _result(self, number: int) -> Part | None:
        """Return a part once it is made, None if it did not fit beside the others."""
        try:
            return self._begun.pop(number).result()
        except DeviceMemoryError:
            return None  # and with the error goes what it holds of the GPU's memory

    def _make_alone(self, number: int) -> Part:
        """Make a part that may fit alone, and begin others anew that did not fit either."""
        wait(self._begun.values())
        failed = [n for n, part in self._begun.items() if part.exception() is not None]
        for other in failed:
            del self._begun[other]
        self._waiting.extendleft(reversed(failed))
        return self._make(number)


def own_streams(device: torch.device, count: int) -> Callable[[], None]:
    """Return what gives each of ``count`` threads that call it a stream of its own.

    Raises
    ------
    DeviceError
        The GPU reports an error.
    """
    stream: Any = torch.cuda.Stream
    try:
        streams = [stream(device) for _ in range(count)]
    except RuntimeError as error:
        raise DeviceError(f"{device}: {error}") from error
    return lambda: torch.cuda.set_stream(streams.pop())

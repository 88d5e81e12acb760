"""Parts that are made several at a time come in the order in which they are asked for."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from llava_fa import DeviceError, DeviceMemoryError, in_flight
from llava_fa.in_flight import IN_FLIGHT, PartsInFlight

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that were given a stream of their own."""
    owners: list[str] = []

    def own_streams(device: torch.device, count: int) -> Callable[[], None]:
        assert (device, count) == (GPU, IN_FLIGHT)
        return lambda: owners.append(threading.current_thread().name)

    monkeypatch.setattr(in_flight, "own_streams", own_streams)
    return owners


class Maker:
    """Notes what was made, where, and how much of it at the same time."""

    def __init__(self, fails: Callable[[int, int], BaseException | None] | None = None) -> None:
        self.made: list[int] = []
        self.done: set[int] = set()
        self.threads: set[str] = set()
        self.most = 0
        self._now = 0
        self._fails = fails
        self._lock = threading.Lock()

    def __call__(self, number: int) -> Any:
        with self._lock:
            self.made.append(number)
            self.threads.add(threading.current_thread().name)
            self._now += 1
            self.most = max(self.most, self._now)
            error = self._fails(number, self._now) if self._fails else None
        time.sleep(0.01 * (3 - number % 3))  # later ones are often done first
        with self._lock:
            self._now -= 1
        if error is not None:
            raise error
        self.done.add(number)
        return -number


def made_by(make: Maker, numbers: range, device: torch.device = GPU) -> Iterator[Any]:
    """Expect all parts, and yield one after another."""
    with PartsInFlight(make, device) as parts:
        parts.expect(numbers)
        yield from map(parts, numbers)


def test_in_the_order_asked_for_and_each_once(streams: list[str]) -> None:
    make = Maker()
    assert list(made_by(make, range(2, 20))) == [-n for n in range(2, 20)]
    assert sorted(make.made) == list(range(2, 20))
    assert 1 < make.most <= IN_FLIGHT
    assert make.threads == set(streams)


def test_what_was_not_expected_is_made_at_once() -> None:
    make = Maker()
    with PartsInFlight(make, GPU) as parts:
        parts.expect([1, 2])
        assert parts(7) == -7
        assert make.threads == {threading.current_thread().name}
        assert [parts(1), parts(2)] == [-1, -2]
        parts.expect([3])
        assert parts(3) == -3
    assert make.made == [7, 1, 2, 3]


def test_one_after_another_on_the_cpu(streams: list[str]) -> None:
    make = Maker()
    assert list(made_by(make, range(5), CPU)) == [0, -1, -2, -3, -4]
    assert (make.most, make.threads) == (1, {threading.current_thread().name})
    assert streams == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_comes_in_its_turn_and_ends_the_work(error: type[BaseException]) -> None:
    make = Maker(lambda number, _: error("bad") if number == 2 else None)
    parts = made_by(make, range(100))
    assert [next(parts), next(parts)] == [0, -1]
    with pytest.raises(error, match="bad"):
        next(parts)
    assert set(make.made) == set(range(len(make.made)))
    assert len(make.made) <= 2 + IN_FLIGHT
    assert not make.threads & {thread.name for thread in threading.enumerate()}


def test_what_does_not_fit_beside_others_is_made_alone() -> None:
    make = Maker(lambda _, now: DeviceMemoryError("full") if now > 1 else None)
    assert list(made_by(make, range(9))) == [-n for n in range(9)]
    assert len(make.made) > 9


def test_what_is_found_saved_is_not_waited_for() -> None:
    """As shards are built: a part that its thread has saved in the meantime is not asked for."""
    make = Maker()
    with PartsInFlight(make, GPU) as parts:
        parts.expect(range(30))
        for number in range(30):
            if number % 4 == 3:
                time.sleep(0.05)  # a shard is written
            if number not in make.done:
                assert parts(number) == -number
                assert len(parts._begun) <= IN_FLIGHT
                assert all(later > number for later in parts._begun)
        assert make.made == list(range(30))


def test_what_failed_leaves_no_memory_for_the_next_try() -> None:
    """Errors hold the frames they come from, and so the tensors there."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def make(number: int) -> Any:
        weight = torch.zeros(3)
        if threading.current_thread() is threading.main_thread():
            alive.append(sum(one() is not None for one in held))
            return number
        held.append(weakref.ref(weight))
        raise DeviceMemoryError("full")

    with PartsInFlight(make, GPU) as parts:
        parts.expect(range(6))
        assert [parts(number) for number in range(6)] == list(range(6))
    assert alive == [0] * 6


def test_a_gpu_that_gives_no_stream_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "Stream", broken)
    with pytest.raises(DeviceError, match="cuda:0: CUDA error: unspecified"):
        PartsInFlight(Maker(), GPU)


def test_what_does_not_fit_alone_is_an_error() -> None:
    make = Maker(lambda number, _: DeviceMemoryError("full") if number == 4 else None)
    with pytest.raises(DeviceMemoryError, match="full"):
        list(made_by(make, range(9)))
    assert make.made.count(4) == 2

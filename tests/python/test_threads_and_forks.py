"""Packed layers used by many threads at once, and by processes forked after the use of threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llava_fa import CompressionConfig, _core, compress_matrix
from llava_fa.nn import FourierLinear

CALLERS, ROUNDS = 8, 12
SHAPES = [(300, 256), (256, 300), (131, 97)]
CODES = [{"bits": 3}, {"bits": 4, "rank": 4}, {"bits": 2, "codec": "trellis"}]


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = _core.num_threads()
    _core.set_num_threads(3)
    yield
    _core.set_num_threads(before)


def layers() -> list[FourierLinear]:
    """New ones, so that what is prepared at the first use is not prepared yet."""
    made = []
    for shape, options in zip(SHAPES, CODES, strict=True):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        made.append(
            FourierLinear.from_matrix(compress_matrix(weight, CompressionConfig(**options)))
        )
    return made


def activations(layer: FourierLinear, seed: int) -> torch.Tensor:
    """One token, a few, or as many as are multiplied with decoded blocks."""
    tokens = (1, 3, 70)[seed % 3]
    return torch.randn(tokens, layer.in_features, generator=torch.Generator().manual_seed(seed))


def test_many_threads_get_the_results_of_one() -> None:
    expected = [[layer(activations(layer, seed)) for seed in range(ROUNDS)] for layer in layers()]
    shared, together = layers(), threading.Barrier(CALLERS)

    def call(_: int) -> bool:
        together.wait()
        return all(
            torch.equal(layer(activations(layer, seed)), expected[i][seed])
            for seed in range(ROUNDS)
            for i, layer in enumerate(shared)
        )

    with ThreadPoolExecutor(CALLERS) as pool:
        assert all(pool.map(call, range(CALLERS)))


def test_many_threads_compress_and_decode() -> None:
    expected = [layer.dense() for layer in layers()]

    def call(_: int) -> bool:
        return all(torch.equal(a.dense(), b) for a, b in zip(layers(), expected, strict=True))

    with ThreadPoolExecutor(CALLERS) as pool:
        assert all(pool.map(call, range(CALLERS)))


# A fork copies the calling thread alone; what the parent's library remembers of its other threads
# must not be waited for. The parent is a process of its own, as this one has more than it needs.
PARENT = """
import multiprocessing, os
import torch
from llava_fa import CompressionConfig, _core, compress_matrix
from llava_fa.nn import FourierLinear

_core.set_num_threads(3)
torch.set_num_threads(1)  # torch itself hangs in a forked process that had more
layer = FourierLinear.from_matrix(compress_matrix(torch.randn(512, 512), CompressionConfig(bits=3)))
inputs = [torch.randn(tokens, 512) for tokens in (1, 5, 200)]

def results():
    weight = layer.dense()  # decoding has threads of its own
    return [weight, *(layer(x).detach() for x in inputs)]

def compressed():
    return compress_matrix(weight, CompressionConfig(bits=2)).dense()

expected = results()
weight = torch.randn(300, 200)
again = compressed()

def right(_=None):
    same = all(torch.equal(a, b) for a, b in zip(results(), expected))
    return same and torch.equal(compressed(), again)

def forked(depth):
    child = os.fork()
    if child == 0:
        os._exit(0 if right() and (depth == 1 or forked(depth - 1)) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def run(code: str) -> None:
    """Run and expect success; a hang is a failure."""
    command = [sys.executable, "-c", PARENT + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


class TestForks:
    def test_a_child_and_its_child_multiply_decode_and_compress(self) -> None:
        run("assert forked(2) and right()")  # the parent goes on after them

    def test_workers_of_multiprocessing(self) -> None:
        run(
            "with multiprocessing.get_context('fork').Pool(3) as pool:\n"
            "    assert all(pool.map(right, range(6)))\n"
        )

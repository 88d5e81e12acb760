"""The allocator against brute force, and what it promises about budgets, ties and bad input."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_fa.allocate import Candidate, allocate, pareto_front
from llava_fa.errors import BudgetError

Instance = Mapping[str, Sequence[Candidate]]

candidates = st.builds(
    Candidate,
    bits=st.sampled_from((1.0, 1.5, 2.0)),
    rank=st.sampled_from((0, 8)),
    nbytes=st.integers(1, 10**7),
    error=st.floats(1e-3, 1e3),
)
instances = st.lists(st.lists(candidates, min_size=1, max_size=4), min_size=1, max_size=5).map(
    lambda lists: {f"m{number}": options for number, options in enumerate(lists)}
)


def brute_force(matrices: Instance, budget: int) -> float | None:
    """The smallest total error within the budget by trying everything; None if nothing fits."""
    choices = itertools.product(*matrices.values())
    fitting = [c for c in choices if sum(candidate.nbytes for candidate in c) <= budget]
    return min((sum(c.error for c in choice) for choice in fitting), default=None)


def total(chosen: Mapping[str, Candidate]) -> tuple[int, float]:
    return sum(c.nbytes for c in chosen.values()), sum(c.error for c in chosen.values())


@settings(max_examples=150, deadline=None)
@given(instances, st.floats(0, 1.1))
def test_is_as_good_as_brute_force_and_within_the_budget(matrices: Instance, share: float) -> None:
    largest = sum(max(c.nbytes for c in options) for options in matrices.values())
    budget = int(share * largest)
    best = brute_force(matrices, budget)
    if best is None:
        with pytest.raises(BudgetError):
            allocate(matrices, budget)
        return
    chosen, _ = allocate(matrices, budget)
    nbytes, error = total(chosen)
    assert nbytes <= budget
    assert error <= best * (1 + 1e-5)
    assert all(chosen[name] in matrices[name] for name in matrices)


@settings(max_examples=50, deadline=None)
@given(instances)
def test_a_budget_that_is_met_exactly_is_enough(matrices: Instance) -> None:
    exact = sum(options[0].nbytes for options in matrices.values())
    nbytes, error = total(allocate(matrices, exact)[0])
    assert nbytes <= exact
    assert error <= sum(options[0].error for options in matrices.values()) * (1 + 1e-5)


def large_instance(seed: int) -> dict[str, list[Candidate]]:
    """Sizes of a model of a few billion weights, errors of all magnitudes, many equal matrices."""
    draw = random.Random(seed)
    matrices = {}
    for number in range(120):
        rows, columns = draw.choice([(4096, 4096), (11008, 4096), (1024, 1024)])
        weight = draw.choice([1.0, 1.0, draw.lognormvariate(0, 1)])
        matrices[f"m{number}"] = [
            Candidate(b / 2, 0, rows * columns * b // 16 + rows, weight * 2.0**-b)
            for b in range(2, 11)
        ]
    return matrices


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_large_budgets_are_kept_to_the_byte_and_used(share: float) -> None:
    matrices = large_instance(1)
    budget = int(share * sum(options[-1].nbytes for options in matrices.values()))
    nbytes, error = total(allocate(matrices, budget)[0])
    assert budget * 0.999 < nbytes <= budget
    # Lagrange: no choice within the budget is below this bound, whatever the multiplier.
    bound = max(
        sum(min(c.error + price * c.nbytes for c in options) for options in matrices.values())
        - price * budget
        for price in (2.0 ** (-k / 4) for k in range(60, 160))
    )
    assert bound <= error <= bound * 1.02


def test_equal_input_gives_equal_output() -> None:
    matrices = large_instance(2)
    budget = int(0.4 * sum(options[-1].nbytes for options in matrices.values()))
    assert allocate(matrices, budget) == allocate(matrices, budget)


def test_earlier_ones_of_equal_matrices_get_more() -> None:
    options = [Candidate(2, 0, 100, 4.0), Candidate(3, 0, 150, 1.0)]
    chosen, _ = allocate({"c": options, "a": options, "b": options}, 400)
    assert list(chosen) == ["c", "a", "b"]
    assert [chosen[name].bits for name in "cab"] == [3, 3, 2]


def test_more_than_everything_takes_the_most_accurate() -> None:
    options = [Candidate(5, 0, 150, 1.0), Candidate(2, 0, 100, 4.0), Candidate(5, 8, 160, 2.0)]
    chosen, unused = allocate({"a": options}, 10**9)
    assert unused
    assert chosen["a"] == options[0]


def test_too_little_states_the_minimum() -> None:
    options = [Candidate(2, 0, 100, 4.0), Candidate(3, 0, 150, 1.0)]
    with pytest.raises(BudgetError, match="at least 200") as caught:
        allocate({"a": options, "b": options}, 199)
    assert caught.value.minimum == 200


def test_dominated_settings_are_dropped() -> None:
    good, worse = Candidate(2, 0, 100, 1.0), Candidate(2, 8, 120, 1.0)
    assert pareto_front([worse, good]) == (good,)


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -1.0])
def test_errors_must_be_numbers(error: float) -> None:
    with pytest.raises(ValueError, match="not negative"):
        allocate({"a": [Candidate(2, 0, 100, error)]}, 1000)


def test_no_settings() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        allocate({"a": []}, 1000)


def test_native_lines_do_not_reach_standard_output() -> None:
    """HiGHS prints debugging lines on some instances; into a pipe, C buffers them until the end."""
    program = (
        "import ctypes\n"
        "from llava_fa.allocate import _native_stdout_silenced\n"
        "native = ctypes.CDLL(None).puts\n"
        "print('before'); native(b'before, native')\n"
        "with _native_stdout_silenced():\n"
        "    native(b'stray')\n"
        "print('after', flush=True); native(b'after, native')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ["before", "before, native", "after", "after, native"]
    assert result.stdout.splitlines() == lines

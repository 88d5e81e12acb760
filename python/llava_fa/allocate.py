"""Spreads a byte budget over matrices: a mixed-integer program over the settings of each one.

Minimizes ``Σ_i error_i(setting_i)`` subject to ``Σ_i nbytes_i(setting_i) ≤ budget``, one setting
per matrix: a multiple-choice knapsack, solved by HiGHS through ``scipy.optimize.milp``. Nothing
here knows what a matrix is; the errors come weighted from :mod:`llava_fa.error_model`.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import BudgetError

# Of the objective. A multiple-choice knapsack's relaxation has at most one fractional matrix, so
# branching closes the gap quickly; the bound on nodes is there for the worst case, and counts
# nodes because a bound in seconds would make the result depend on the machine.
_RELATIVE_GAP = 1e-6
_MOST_NODES = 20_000
# HiGHS judges integrality to 1e-6: rounded counts of large matrices can miss an integer budget.
_ATTEMPTS = 20


@dataclass(frozen=True)
class Candidate:
    """One possible setting of a matrix: its stored bytes and its weighted error."""

    bits: float
    rank: int
    nbytes: int
    error: float


def allocate(
    matrices: Mapping[str, Sequence[Candidate]], budget: int
) -> tuple[dict[str, Candidate], bool]:
    """Choose one candidate for every matrix.

    Parameters
    ----------
    matrices
        Name to candidates, at least one each. Matrices with equal candidates are interchangeable;
        of these the earlier ones get the larger settings, because what they lose passes through
        more of the model.
    budget
        Bytes that the chosen candidates may take together, at most.

    Returns
    -------
    tuple
        The choice by name, in the order of ``matrices``, and whether the budget exceeds what the
        most accurate settings take, so that part of it stays unused.

    Raises
    ------
    BudgetError
        The smallest settings together exceed the budget.

    Examples
    --------
    >>> two = [Candidate(2, 0, 100, 4.0), Candidate(3, 0, 150, 1.0)]
    >>> chosen, _ = allocate({"a": two, "b": two}, 260)
    >>> [candidate.bits for candidate in chosen.values()], sum(c.nbytes for c in chosen.values())
    ([3, 2], 250)
    """
    fronts = {name: pareto_front(candidates) for name, candidates in matrices.items()}
    least = sum(front[0].nbytes for front in fronts.values())
    if least > budget:
        raise BudgetError(
            f"a budget of {budget} bytes for {len(fronts)} matrices, expected at least {least}: "
            "what the smallest settings of all of them take",
            minimum=least,
        )
    if sum(front[-1].nbytes for front in fronts.values()) <= budget:
        return {name: front[-1] for name, front in fronts.items()}, True
    groups: dict[tuple[Candidate, ...], list[str]] = {}
    for name, front in fronts.items():
        groups.setdefault(front, []).append(name)
    counts = _solve(list(groups), [len(names) for names in groups.values()], budget)
    chosen = {}
    for (front, names), group_counts in zip(groups.items(), counts, strict=True):
        largest_first = np.repeat(np.arange(len(front)), group_counts)[::-1]
        for name, index in zip(names, largest_first, strict=True):
            chosen[name] = front[index]
    return {name: chosen[name] for name in matrices}, False


def pareto_front(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates that no other one beats in both bytes and error, smallest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.nbytes, c.error, c.rank, c.bits)):
        if not math.isfinite(candidate.error) or candidate.error < 0:
            raise ValueError(f"{candidate}: expected a finite error that is not negative")
        if not front or candidate.error < front[-1].error:
            front.append(candidate)
    if not front:
        raise ValueError("a matrix has no candidate settings, expected at least one")
    return tuple(front)


def _solve(
    fronts: Sequence[Sequence[Candidate]], sizes: Sequence[int], budget: int
) -> list[npt.NDArray[np.int64]]:
    """Return, for each group of equal matrices, how many get each candidate of their front."""
    extra = [np.array([c.nbytes - front[0].nbytes for c in front]) for front in fronts]
    room = budget - sum(n * front[0].nbytes for n, front in zip(sizes, fronts, strict=True))
    # Small integers instead of bytes: exact in the solver's floats.
    unit = int(np.gcd.reduce(np.concatenate(extra)))
    costs, room = [cost // unit for cost in extra], room // unit
    allowed = room
    for _ in range(_ATTEMPTS):
        counts = _solve_once(fronts, sizes, costs, allowed)
        used = sum(int(n @ cost) for n, cost in zip(counts, costs, strict=True))
        if used <= room:
            return counts
        allowed -= used - room
    raise BudgetError(
        f"HiGHS found no allocation that keeps to {budget} bytes exactly; choose a budget a few "
        "thousand bytes larger or smaller",
        minimum=0,
    )


def _solve_once(
    fronts: Sequence[Sequence[Candidate]],
    sizes: Sequence[int],
    costs: Sequence[npt.NDArray[np.int64]],
    room: int,
) -> list[npt.NDArray[np.int64]]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    lengths = [len(front) for front in fronts]
    owner = np.repeat(np.arange(len(fronts)), lengths)
    errors = np.array([c.error for front in fronts for c in front])
    # HiGHS has absolute tolerances beside the relative ones; this makes them irrelevant.
    errors *= 1e4 / max(float(errors @ _smallest(lengths, sizes)), np.finfo(float).tiny)
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    with _native_stdout_silenced():
        result = milp(
            errors,
            integrality=np.ones(len(owner)),
            bounds=Bounds(0, np.asarray(sizes)[owner]),
            constraints=[
                LinearConstraint(one_each, sizes, sizes),
                LinearConstraint(np.concatenate(costs)[None, :].astype(float), -np.inf, room),
            ],
            options={"mip_rel_gap": _RELATIVE_GAP, "node_limit": _MOST_NODES},
        )
    if result.x is None:
        raise BudgetError(f"HiGHS found no allocation: {result.message}", minimum=0)
    rounded = np.rint(result.x).astype(np.int64)
    return list(np.split(rounded, np.cumsum(lengths)[:-1]))


@contextmanager
def _native_stdout_silenced() -> Iterator[None]:
    """Keep HiGHS's stray debugging lines, which no option turns off, out of our callers' output."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed: there is nothing to protect
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
        flush(None)  # while the buffer's lines still go nowhere
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def _smallest(lengths: Sequence[int], sizes: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the solution in which every matrix has its smallest setting."""
    counts = np.zeros(sum(lengths))
    counts[np.cumsum([0, *lengths[:-1]])] = sizes
    return counts

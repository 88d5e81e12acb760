"""Verdicts computed from figures: confirmed, refuted, or not separable at 95 %."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float]
CONFIRMED, REFUTED, NOT_SEPARABLE = "confirmed", "refuted", "not separable"


def mean_ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, Interval]:
    """Geometric mean of ``first / second`` over matrices and its 95 % bootstrap interval."""
    logs = np.log(np.asarray(first)) - np.log(np.asarray(second))
    drawn = np.random.default_rng(0).integers(0, len(logs), (4000, len(logs)))
    low, high = np.quantile(logs[drawn].mean(axis=1), [0.025, 0.975])
    return float(np.exp(logs.mean())), (float(np.exp(low)), float(np.exp(high)))


def is_lower(interval: Interval, border: float) -> str:
    """Judge the claim "lower than ``border``" by an interval of the figure."""
    if interval[1] < border:
        return CONFIRMED
    return REFUTED if interval[0] > border else NOT_SEPARABLE


def is_true(condition: bool) -> str:
    """Judge a claim that a computed figure settles without uncertainty."""
    return CONFIRMED if condition else REFUTED


def row(
    claim: str, measure: str, figures: tuple[float, float], effect: str, verdict: str
) -> dict[str, Any]:
    """Form one line of the table of claims; ``figures`` are the claim's side and the other."""
    return {
        "claim": claim,
        "measure": measure,
        "claimed side": figures[0],
        "other side": figures[1],
        "effect (95 % interval)": effect,
        "verdict": verdict,
    }


def error_row(claim: str, first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Judge "the first way's relative squared error is lower", paired over matrices."""
    ratio, interval = mean_ratio(first, second)
    return row(
        claim,
        "relative squared error, mean over matrices",
        (float(np.mean(first)), float(np.mean(second))),
        f"ratio {ratio:.4f} ({interval[0]:.4f} to {interval[1]:.4f})",
        is_lower(interval, 1.0),
    )

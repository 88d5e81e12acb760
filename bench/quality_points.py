"""Measuring rows of the comparison: answers, output errors and stored bits, kept between runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm.auto import tqdm

from bench.methods import Method, Skipped, UnavailableError
from bench.score_store import Store, hash_of_files, hash_of_tensors, key_of
from bench.tiny_model import HELD_OUT_SEED, Judge, Score


@dataclass(frozen=True)
class Sample:
    """One method at one width and seed."""

    score: Score
    stored: float
    """All stored bits per weight."""
    output_errors: npt.NDArray[np.float64]
    """Relative squared output error of every matrix on held-out inputs."""


@dataclass(frozen=True)
class Point:
    """One method at one width: the samples of all seeds."""

    method: str
    bits: float
    samples: list[Sample]

    @property
    def scores(self) -> list[Score]:
        """What the answers became, by seed."""
        return [sample.score for sample in self.samples]

    @property
    def stored(self) -> float:
        """All stored bits per weight, mean over the seeds."""
        return statistics.mean(sample.stored for sample in self.samples)

    @property
    def divergences(self) -> npt.NDArray[np.float64]:
        """KL of every (seed, question)."""
        return np.stack([score.divergences for score in self.scores])

    @property
    def hits(self) -> npt.NDArray[np.float64]:
        """Whether each (seed, question) is answered right, 0 or 1."""
        return np.stack([score.hits for score in self.scores])

    @property
    def kl(self) -> float:
        """KL from the dense model, mean over questions and seeds."""
        return float(self.divergences.mean())

    @property
    def accuracy(self) -> float:
        """Share of right answers, mean over the seeds."""
        return float(self.hits.mean())

    @property
    def output_errors(self) -> npt.NDArray[np.float64]:
        """Relative squared output error of every matrix, mean over the seeds."""
        errors: npt.NDArray[np.float64] = np.mean(
            [sample.output_errors for sample in self.samples], axis=0
        )
        return errors

    @property
    def output_error(self) -> float:
        """Mean of ``output_errors`` over the matrices."""
        return float(self.output_errors.mean())

    def row(self, judge: Judge) -> dict[str, Any]:
        """Return the point as a line of the table."""
        by_seed = [score.kl for score in self.scores]
        lost, (least, most) = judge.accuracy_loss(self.hits)
        low, high = judge.interval_of(self.hits)
        return {
            "method": self.method,
            "bits": self.bits,
            "stored bits": self.stored,
            "output error": self.output_error,
            "KL": self.kl,
            "KL interval": "{:.4g} to {:.4g}".format(*judge.interval_of(self.divergences)),
            "KL over seeds": f"{min(by_seed):.4g} to {max(by_seed):.4g}",
            "agreement %": 100 * statistics.mean(score.agreement for score in self.scores),
            "accuracy %": 100 * self.accuracy,
            "accuracy interval": f"{100 * low:.1f} to {100 * high:.1f}",
            "points lost": lost,
            "points lost interval": f"{least:.2f} to {most:.2f}",
            "seeds": len(self.scores),
        }


class Laboratory:
    """A judge, the moments for calibration and the held-out ones, and a store for results.

    Parameters
    ----------
    judge : Judge
    calibration : int
        Questions that give the calibration's moments, and as many that give the held-out ones,
        on other images.
    store : Store
    """

    def __init__(self, judge: Judge, calibration: int, store: Store) -> None:
        self.judge = judge
        self.store = store
        self.moments = judge.second_moments(calibration, full=True)
        self.held_out = judge.second_moments(calibration, full=True, seed=HELD_OUT_SEED)

    @cached_property
    def key(self) -> dict[str, str]:
        """What every result depends on."""
        return {
            "judge": self.judge.key,
            "moments": hash_of_tensors(self.moments),
            "held_out": hash_of_tensors(self.held_out),
        }

    def measure(self, method: Method, seeds: int) -> Point:
        """Compress under every seed, ask the benchmark, compare outputs."""
        used = range(seeds if method.seeded else 1)
        return Point(method.name, method.bits, [self._sample(method, seed) for seed in used])

    def _sample(self, method: Method, seed: int) -> Sample:
        key = key_of(
            **self.key,
            name=method.name,
            bits=method.bits,
            settings=dict(method.settings),
            seed=seed,
            code=hash_of_files(method.code),
        )
        found = self.store.get(key)
        if found is not None:
            errors, stored = found["output_errors"], float(found["stored"])
            return Sample(Score.of_arrays(found), stored, errors)
        candidate = method.compress(self.judge.weights, self.moments, seed)
        _check(method, candidate.weights, self.judge.weights)
        errors = np.array(list(self.judge.output_errors(candidate.weights, self.held_out).values()))
        score, stored = self.judge.score(candidate.weights), candidate.bits_per_weight
        self.store.put(key, {**score.arrays(), "output_errors": errors, "stored": np.array(stored)})
        return Sample(score, stored, errors)


def _check(method: Method, weights: dict[str, Tensor], dense: dict[str, Tensor]) -> None:
    """Refuse a candidate that does not replace every matrix by a finite one of its shape."""
    for name, weight in dense.items():
        if name not in weights:
            raise ValueError(f'"{method.name}" at {method.bits:g} bits left out "{name}"')
        found = weights[name]
        if found.shape != weight.shape or not bool(found.isfinite().all()):
            raise ValueError(
                f'"{method.name}" at {method.bits:g} bits made of "{name}" a tensor of shape '
                f"{tuple(found.shape)}, finite: {bool(found.isfinite().all())}; expected a finite "
                f"one of shape {tuple(weight.shape)}"
            )


def measure_all(
    laboratory: Laboratory, rows: Sequence[Method | Skipped], seeds: int
) -> tuple[list[Point], list[Skipped]]:
    """Measure rows with a progress bar and a line for each; what could not be, with the reason."""
    points = []
    skipped = [row for row in rows if isinstance(row, Skipped)]
    with tqdm([row for row in rows if isinstance(row, Method)], unit="point") as bar:
        for method in bar:
            bar.set_description(f"{method.name} {method.bits:g}")
            try:
                point = laboratory.measure(method, seeds)
            except UnavailableError as error:
                skipped.append(Skipped(method.name, method.bits, str(error)))
                bar.write(f"{method.name} at {method.bits:g} bits does not run: {error}")
                continue
            points.append(point)
            bar.write(
                f"{point.method:42s} {point.bits:3.1f} bits, stored {point.stored:.3f}: "
                f"output error {point.output_error:.5f}, KL {point.kl:.5f}"
            )
    return points, skipped

"""Which claims of the paper hold on a trained model? One row each, with a computed verdict.

Errors of matrices are paired over the tiny model's weights, KL divergences of its answers from
the dense model's over questions (whole images drawn anew); the scatter between seeds of the random
signs, pooled over the arms, widens the intervals of the latter. A claim is confirmed or refuted
only if the 95 % interval of the ratio says so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import t as student_t
from torch import Tensor

from bench import baselines, support, tiny_model, verdicts
from bench.tiny_model import Candidate, Judge
from llava_fa import CompressionConfig, half_spectrum, inverse_half_spectrum

ROUND_TRIP = 2e-6
RANKS = (8, 32)
JOINT_RANK = 8
Row = dict[str, Any]


class Laboratory:
    """The model, its judge and everything that several claims share."""

    def __init__(self, judge: Judge, seeds: int, calibration: int, curve: Sequence[float]) -> None:
        self.judge = judge
        self.weights = judge.weights
        self.seeds = range(seeds)
        self.calibration = calibration
        self.curve = curve
        self.candidates = lru_cache(maxsize=None)(self._candidates)

    @cached_property
    def full_moments(self) -> dict[str, Tensor]:
        """E[x x^T] of every matrix's input."""
        return self.judge.second_moments(self.calibration, full=True)

    @cached_property
    def moments(self) -> dict[str, Tensor]:
        """E[x_j^2] of every matrix's input."""
        return {name: full.diagonal().clone() for name, full in self.full_moments.items()}

    def _candidates(self, data: str = "", **settings: Any) -> list[Candidate]:
        """Compress with the library under every seed; ``data`` names the moments used."""
        moments = {"": None, "diagonal": self.moments, "full": self.full_moments}.get(data)
        settings = {"odc": "spatial" if data else "none", **settings}
        seeds = self.seeds if settings.get("signs", True) else self.seeds[:1]
        return [
            tiny_model.compressed(
                self.weights,
                CompressionConfig(seed=seed, calibration="diagonal", **settings),
                moments,
            )
            for seed in seeds
        ]

    def baseline(self, code: Callable[..., baselines.Baseline]) -> list[Candidate]:
        """Apply a baseline that takes a seed of the signs under every seed."""
        return [tiny_model.coded(self.weights, partial(code, seed=s)) for s in self.seeds]

    def errors(
        self, candidates: list[Candidate], scales: Mapping[str, Tensor] | None = None
    ) -> list[float]:
        """Relative squared error of every matrix, mean over seeds; columns weighted by scales."""
        result = []
        for name, weight in self.weights.items():
            s = torch.ones(weight.shape[1]) if scales is None else scales[name].sqrt()
            result.append(
                float(
                    np.mean(
                        [
                            baselines.relative_error(weight * s, item.weights[name] * s)
                            for item in candidates
                        ]
                    )
                )
            )
        return result

    def divergences(self, candidates: list[Candidate]) -> npt.NDArray[np.float64]:
        """KL of every (seed, question)."""
        return np.stack([self.judge.score(item.weights).divergences for item in candidates])

    @cached_property
    def seed_scatter(self) -> tuple[float, int]:
        """Standard deviation of log KL between seeds of the signs, and its degrees of freedom.

        Pooled over widths and ODC: the scatter is multiplicative and much alike in all of them.
        """
        arms = [self.candidates(bits=bits) for bits in self.curve]
        arms += [self.candidates(data="diagonal", bits=bits) for bits in self.curve[:1]]
        logs = np.log([self.divergences(arm).mean(axis=1) for arm in arms])
        freedom = logs.size - len(logs)
        deviations = logs - logs.mean(axis=1, keepdims=True)
        return float(np.sqrt((deviations**2).sum() / max(freedom, 1))), freedom

    def kl_row(self, claim: str, first: list[Candidate], second: list[Candidate]) -> Row:
        """Judge "the first way's KL is lower" by the ratio of the two.

        Its interval joins the scatter over images (paired by question) and over seeds.
        """
        ours, other = self.divergences(first), self.divergences(second)
        scatter, freedom = self.seed_scatter
        by_seed = scatter * np.sqrt(1 / len(ours) + 1 / len(other))
        quantile = student_t.ppf(0.975, freedom) if freedom else 0.0
        half = np.hypot(1.96 * self.judge.log_ratio_error(ours, other), quantile * by_seed)
        ratio = ours.mean() / other.mean()
        interval = (float(ratio * np.exp(-half)), float(ratio * np.exp(half)))
        made = verdicts.row(
            claim,
            "KL of the answers",
            (float(ours.mean()), float(other.mean())),
            f"ratio {ratio:.3f} ({interval[0]:.3f} to {interval[1]:.3f})",
            verdicts.is_lower(interval, 1.0),
        )
        print(f"{claim}: {made['verdict']}", flush=True)
        return {**made, "stored bits": f"{_stored(first):.3f} / {_stored(second):.3f}"}

    def error_row(self, claim: str, first: list[Candidate], second: list[Candidate]) -> Row:
        """Judge "the first way's error is lower", paired over matrices."""
        made = verdicts.error_row(claim, self.errors(first), self.errors(second))
        return {**made, "stored bits": f"{_stored(first):.3f} / {_stored(second):.3f}"}


def _stored(candidates: list[Candidate]) -> float:
    return float(np.mean([candidate.bits_per_weight for candidate in candidates]))


def conjugate_symmetry(lab: Laboratory) -> list[Row]:
    """The half spectrum is lossless; how many numbers does it hold?"""
    worst, kept, full, dense = 0.0, 0, 0, 0
    for weight in lab.weights.values():
        half = torch.as_tensor(half_spectrum(weight))
        back = torch.as_tensor(inverse_half_spectrum(half, weight.shape[0]))
        worst = max(worst, float((back - weight).norm() / weight.norm()))
        kept, full, dense = (
            kept + 2 * half.numel(),
            full + 2 * weight.numel(),
            dense + weight.numel(),
        )
    share, border = kept / full, 0.5 * (1 + 2 / min(len(w) for w in lab.weights.values()))
    return [
        verdicts.row(
            "the half spectrum loses nothing",
            f"largest relative error of the round trip, bound {ROUND_TRIP}",
            (worst, 0.0),
            "exact in exact arithmetic",
            verdicts.is_true(worst <= ROUND_TRIP),
        ),
        verdicts.row(
            "it stores half of the full complex spectrum",
            f"share of the numbers, bound 1/2 + 1/m = {border:.4f}",
            (share, 1.0),
            "counted",
            verdicts.is_true(share <= border),
        ),
        verdicts.row(
            "it stores fewer numbers than the spatial matrix",
            "real numbers per weight",
            (kept / dense, 1.0),
            "counted",
            verdicts.is_true(kept < dense),
        ),
    ]


def low_rank(lab: Laboratory) -> list[Row]:
    """Complex rank in the half spectrum against real rank, at equal rank and equal storage."""
    spectra = [torch.as_tensor(half_spectrum(weight)) for weight in lab.weights.values()]
    spectral = [torch.linalg.svdvals(spectrum) for spectrum in spectra]
    spatial = [torch.linalg.svdvals(weight) for weight in lab.weights.values()]
    shapes = [weight.shape for weight in lab.weights.values()]
    rows = []
    for rank in RANKS:
        # A complex number of a factor is stored as two reals.
        at_storage = [2 * rank * (m // 2 + 1 + n) / (m + n) for m, n in shapes]
        ours = [_tail(values, rank) for values in spectral]
        same_rank = [_tail(values, rank) for values in spatial]
        same_storage = [_tail(v, r) for v, r in zip(spatial, at_storage, strict=True)]
        claim = f"spectral rank {rank} beats spatial"
        rows.append(verdicts.error_row(f"{claim} at the same rank", ours, same_rank))
        rows.append(verdicts.error_row(f"{claim} at the same storage", ours, same_storage))
    return rows


def _tail(singular_values: Tensor, rank: float) -> float:
    """Relative squared error of the best approximation; linear between whole ranks."""
    energy = singular_values.double().square()
    kept = energy[: int(rank)].sum() + (rank - int(rank)) * energy[int(rank)]
    return float(1 - kept / energy.sum())


def polar(lab: Laboratory, widths: Sequence[int]) -> list[Row]:
    """Polar codes against rectangular ones and against the optimum, at equal code bits."""
    rows = []
    for bits in widths:
        ring = lab.candidates(bits=float(bits))
        product = lab.candidates(bits=float(bits), codec="product")
        uniform = lab.candidates(bits=float(bits), codec="uniform")
        optimal = lab.baseline(partial(baselines.lloyd_max_rectangular, bits=bits))
        plain = lab.baseline(partial(baselines.uniform_rectangular, bits=bits))
        pairs = [
            ("uniform polar beats uniform rectangular", uniform, plain),
            ("Lloyd-Max polar (product) beats Lloyd-Max rectangular", product, optimal),
            ("free polar (ring) beats Lloyd-Max rectangular", ring, optimal),
            ("free polar (ring) beats uniform polar", ring, uniform),
        ]
        for claim, first, second in pairs:
            rows.append(lab.error_row(f"{claim}, {bits} bits", first, second))
        rows.append(lab.kl_row(f"{pairs[0][0]}, {bits} bits", uniform, plain))
        rows.append(lab.kl_row(f"{pairs[2][0]}, {bits} bits", ring, optimal))
        limit = [2.0 ** (-2 * bits)] * len(lab.weights)
        rows.append(
            verdicts.error_row(
                f"free polar is within 1 dB of Shannon's limit, {bits} bits",
                lab.errors(ring),
                [10**0.1 * value for value in limit],
            )
        )
    return rows


def calibration(lab: Laboratory, widths: Sequence[int]) -> list[Row]:
    """ODC on against off, and the paper's spectral variant against the spatial one."""
    rows = []
    for bits in widths:
        off = lab.candidates(bits=float(bits))
        on = lab.candidates(data="diagonal", bits=float(bits))
        claim = f"ODC improves on none, {bits} bits"
        weighted = verdicts.error_row(
            claim, lab.errors(on, lab.moments), lab.errors(off, lab.moments)
        )
        rows.append({**weighted, "measure": "relative squared output error, mean over matrices"})
        rows.append(lab.kl_row(claim, on, off))
    settings: dict[str, Any] = {"bits": 2.0, "rank": JOINT_RANK}
    spectral = lab.candidates(data="full", odc="spectral", **settings)
    claim = f"spectral ODC improves on none, 2 bits, rank {JOINT_RANK}"
    rows.append(lab.kl_row(claim, spectral, lab.candidates(**settings)))
    spatial = lab.candidates(data="full", **settings)
    claim = f"spatial ODC improves on spectral, 2 bits, rank {JOINT_RANK}"
    rows.append(lab.kl_row(claim, spatial, spectral))
    return rows


def random_signs(lab: Laboratory, widths: Sequence[int]) -> list[Row]:
    """Random signs on against off (the paper's transform), without data."""
    rows = []
    for bits in widths:
        on, off = lab.candidates(bits=float(bits)), lab.candidates(bits=float(bits), signs=False)
        claim = f"random signs improve on none, {bits} bits"
        rows += [lab.error_row(claim, on, off), lab.kl_row(claim, on, off)]
    return rows


def joint_solver(lab: Laboratory) -> list[Row]:
    """Alternation against one pass against low rank alone, and against spending on the code."""
    settings: dict[str, Any] = {"bits": 2.0, "rank": JOINT_RANK}
    joint, once = lab.candidates(**settings), lab.candidates(**settings, max_alternations=1)
    alone = [tiny_model.coded(lab.weights, _low_rank_alone)]
    wider = lab.candidates(bits=2.5)
    at = f"2 bits, rank {JOINT_RANK}"
    rows = []
    for claim, other in (
        (f"joint beats sequential, {at}", once),
        (f"joint beats low rank alone, {at}", alone),
        (f"joint at {at} beats rank 0 at 2.5 bits", wider),
    ):
        rows += [lab.error_row(claim, joint, other), lab.kl_row(claim, joint, other)]
    return rows


def _low_rank_alone(weight: Tensor) -> baselines.Baseline:
    return baselines.spectral_low_rank(weight, JOINT_RANK)


def bit_widths(lab: Laboratory, widths: Sequence[float]) -> list[Row]:
    """Every half bit helps, and four bits keep the accuracy within half a point."""
    rows = []
    for fewer, more in itertools.pairwise(widths):
        claim = f"{more:g} bits beat {fewer:g}"
        rows.append(lab.kl_row(claim, lab.candidates(bits=more), lab.candidates(bits=fewer)))
    for bits, border in ((4.0, 0.5), (3.0, 1.0)):
        if bits not in widths:
            continue
        scores = [lab.judge.score(item.weights) for item in lab.candidates(bits=bits)]
        lost, interval = lab.judge.accuracy_loss(np.stack([score.hits for score in scores]))
        rows.append(
            verdicts.row(
                f"{bits:g} bits lose less than {border} points",
                "points of accuracy lost",
                (lost, border),
                f"lost {lost:.2f} ({interval[0]:.2f} to {interval[1]:.2f})",
                verdicts.is_lower(interval, border),
            )
        )
    return rows


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "claims")
    tiny_model.add_options(parser, questions=400)
    parser.add_argument("--seeds", type=int, default=4, help="seeds of the random signs")
    arguments = parser.parse_args()
    widths: Sequence[int] = (2, 3)
    curve: Sequence[float] = (2.0, 2.5, 3.0, 3.5, 4.0)
    if arguments.quick:
        arguments.questions, arguments.calibration, arguments.seeds = 40, 16, 1
        widths, curve = (2,), (2.0, 4.0)
    begin = time.perf_counter()
    judge = Judge(arguments.model, arguments.questions)
    lab = Laboratory(judge, arguments.seeds, arguments.calibration, curve)
    tables = {
        "Conjugate symmetry": conjugate_symmetry(lab),
        "Low rank": low_rank(lab),
        "Polar codes": polar(lab, widths),
        "ODC": calibration(lab, widths),
        "Random signs": random_signs(lab, widths),
        "Joint problem": joint_solver(lab),
        "Bit widths": bit_widths(lab, curve),
    }
    found = [row["verdict"] for rows in tables.values() for row in rows]
    support.publish(
        "claims",
        arguments.json,
        tables,
        {
            "questions": arguments.questions,
            "seeds": arguments.seeds,
            "dense_accuracy": judge.dense_accuracy.value,
            "seed_scatter_of_log_kl": lab.seed_scatter[0],
            "verdicts": {verdict: found.count(verdict) for verdict in sorted(set(found))},
            "seconds_taken": time.perf_counter() - begin,
        },
    )


if __name__ == "__main__":
    main()

"""How well does the tiny model still answer at every width, beside simple rounding?

The curve of KL divergence, agreement and accuracy over stored bits: the ``ring`` code without
data and with ODC, mean of several seeds of the random signs, against round-to-nearest and NF4. All
stored bits are counted. Intervals draw images anew; the range over the seeds stands beside. Second
moments come from images that are not in the benchmark. Writes the table and a chart, and checks
the targets of the project on the figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bench import baselines, support, tiny_model
from bench.tiny_model import Candidate, Judge, Score
from llava_fa import CompressionConfig

WIDTHS = (2.0, 2.5, 3.0, 3.5, 4.0)
ROUNDING_WIDTHS = (2, 3, 4)
LARGEST_LOSS = {4.0: 0.5, 3.0: 1.0}
"""Points of accuracy that may be lost at a width."""

NO_SCALES = "ring, no data, no scales"
NO_DATA = "ring, no data"
CALIBRATED = "ring + ODC"
ROUNDED = "round to nearest g64"
NF4 = "NF4 g64"
Moments = Mapping[str, Tensor]


@dataclass(frozen=True)
class Point:
    """One method at one width: the scores of all seeds of the signs."""

    method: str
    bits: float
    stored: float
    scores: list[Score]

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

    def row(self, judge: Judge) -> dict[str, Any]:
        """Return the point as a line of the table."""
        by_seed = [score.kl for score in self.scores]
        lost, (least, most) = judge.accuracy_loss(self.hits)
        low, high = judge.interval_of(self.hits)
        return {
            "method": self.method,
            "bits": self.bits,
            "stored bits": self.stored,
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


def ring_point(
    judge: Judge, method: str, bits: float, seeds: int, moments: Moments | None
) -> Point:
    """Compress with the ring code under every seed and score."""
    odc = "none" if method == NO_SCALES else "spatial"
    candidates = [
        tiny_model.compressed(
            judge.weights, CompressionConfig(bits=bits, odc=odc, seed=seed), moments
        )
        for seed in range(seeds)
    ]
    return _point(judge, method, bits, candidates)


def _point(judge: Judge, method: str, bits: float, candidates: Sequence[Candidate]) -> Point:
    stored = statistics.mean(candidate.bits_per_weight for candidate in candidates)
    point = Point(
        method, bits, stored, [judge.score(candidate.weights) for candidate in candidates]
    )
    print(f"{method:26s} {bits:3.1f} bits, stored {stored:.3f}: KL {point.kl:.5f}", flush=True)
    return point


def rounding_points(judge: Judge, widths: Sequence[int]) -> list[Point]:
    """Round-to-nearest at every width, and NF4."""
    points = []
    for bits in widths:
        code = partial(baselines.round_to_nearest, bits=bits)
        points.append(_point(judge, ROUNDED, float(bits), [tiny_model.coded(judge.weights, code)]))
    nf4 = tiny_model.coded(judge.weights, baselines.normal_float_4)
    return [*points, _point(judge, NF4, 4.0, [nf4])]


def targets(judge: Judge, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Check on the figures what the project promised."""
    by = {(point.method, point.bits): point for point in points}
    rows: list[dict[str, Any]] = []
    for method in (NO_SCALES, NO_DATA, CALIBRATED):
        for bits, largest in LARGEST_LOSS.items():
            if (method, bits) not in by:
                continue
            lost, (least, most) = judge.accuracy_loss(by[method, bits].hits)
            rows.append(
                {
                    "target": f"{method}, {bits:g} bits: points of accuracy lost",
                    "measured": lost,
                    "95 % interval": f"{least:.2f} to {most:.2f}",
                    "bound": f"at most {largest}",
                    "met": lost <= largest,
                }
            )
        for bits in ROUNDING_WIDTHS:
            if (method, float(bits)) not in by or (ROUNDED, float(bits)) not in by:
                continue
            ours, other = by[method, float(bits)], by[ROUNDED, float(bits)]
            low, high = judge.interval_of(ours.divergences - other.divergences)
            rows.append(
                {
                    "target": f"{method}, {bits} bits: KL below rounding, fewer stored bits",
                    "measured": ours.kl,
                    "95 % interval": f"difference {low:.4g} to {high:.4g}",
                    "bound": f"below {other.kl:.4g} at {other.stored:.3f} bits",
                    "met": ours.kl < other.kl and ours.stored < other.stored,
                }
            )
    return rows


def draw(path: Path, points: Sequence[Point], dense_accuracy: float) -> None:
    """Draw KL (logarithmic) and accuracy over stored bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    style = {
        NO_DATA: ("o-", "tab:blue"),
        CALIBRATED: ("s-", "tab:green"),
        ROUNDED: ("^--", "tab:red"),
        NF4: ("D", "tab:orange"),
    }
    for method, (marks, color) in style.items():
        line = sorted((p for p in points if p.method == method), key=lambda p: p.stored)
        stored = [point.stored for point in line]
        label = method.replace("ring", "llava-fa ring")
        left.plot(stored, [point.kl for point in line], marks, color=color, label=label)
        right.plot(stored, [100 * p.accuracy for p in line], marks, color=color, label=label)
    left.set_yscale("log")
    left.set_ylabel("KL divergence from the dense model (nats)")
    right.axhline(100 * dense_accuracy, color="gray", linewidth=1, label="dense model")
    right.set_ylabel("accuracy (%)")
    for axes in (left, right):
        axes.set_xlabel("stored bits per weight, everything counted")
        axes.grid(alpha=0.3, which="both")
    right.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "quality")
    tiny_model.add_options(parser, questions=2000)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the random signs")
    arguments = parser.parse_args()
    widths: Sequence[float] = WIDTHS
    rounding: Sequence[int] = ROUNDING_WIDTHS
    if arguments.quick:
        arguments.questions, arguments.calibration, arguments.seeds = 40, 16, 1
        widths, rounding = (2.0, 4.0), (2, 4)
    begin = time.perf_counter()
    judge = Judge(arguments.model, arguments.questions)
    moments = judge.second_moments(arguments.calibration)
    points = rounding_points(judge, rounding)
    for bits in widths:
        for method, data in ((NO_SCALES, None), (NO_DATA, None), (CALIBRATED, moments)):
            points.append(ring_point(judge, method, bits, arguments.seeds, data))
    checked = targets(judge, points)
    dense = {
        "accuracy %": 100 * judge.dense_accuracy.value,
        "accuracy interval": f"{100 * judge.dense_accuracy.low:.1f} to "
        f"{100 * judge.dense_accuracy.high:.1f}",
        "questions": len(judge.questions),
        "images": len(set(judge.images)),
        "weights compressed": judge.weight_count,
        "calibration questions": arguments.calibration,
    }
    support.publish(
        "quality",
        arguments.json,
        {
            "Dense model": [dense],
            "Answers of the tiny model": [point.row(judge) for point in points],
            "Targets": checked,
        },
        {
            "dense": dense,
            "targets_met": all(row["met"] for row in checked),
            "seconds_taken": time.perf_counter() - begin,
        },
    )
    draw(arguments.json.with_suffix(".png"), points, judge.dense_accuracy.value)


if __name__ == "__main__":
    main()

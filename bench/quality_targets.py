"""What the project promised about answers and output errors, checked on measured points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import methods as m
from bench.quality_points import Point
from bench.tiny_model import Judge
from bench.verdicts import mean_ratio

LARGEST_LOSS = {4.0: 0.5, 3.0: 1.0}
"""Points of accuracy that may be lost at a width without feedback."""

LARGEST_LOSS_FED_BACK = {4.0: 0.0, 3.0: 0.0, 2.0: 1.0}
"""The same for the trellis with feedback, beyond the interval's noise for zero."""

DECIBELS_BELOW_GPTQ = {2.0: 1.5, 3.0: 1.0, 4.0: 1.0}
FEWER_BITS_THAN_GPTQ = 0.2

By = Mapping[tuple[str, float], Point]


@dataclass(frozen=True)
class KlBound:
    """KL of one point at most ``share`` of another's, at no more than ``stored`` bits."""

    ours: tuple[str, float]
    other: tuple[str, float]
    share: float
    stored: float


KL_BOUNDS = (
    KlBound((m.TRELLIS_NO_SCALES, 2.0), (m.STRONG_GPTQ, 2.0), 0.5, 2.1),
    KlBound((m.TRELLIS_NO_SCALES, 1.5), (m.STRONG_GPTQ, 2.0), 1.0, 1.6),
    KlBound((m.TRELLIS_NO_SCALES, 3.0), (m.NF4, 4.0), 0.5, 3.1),
)


def targets(judge: Judge, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Check every target whose points were measured."""
    by = {(point.method, point.bits): point for point in points}
    return [*_losses(judge, by), *_below_rounding(judge, by), *_errors(by), *_kl(judge, by)]


def _losses(judge: Judge, by: By) -> Iterator[dict[str, Any]]:
    without = dict.fromkeys((m.NO_SCALES, m.NO_DATA, m.CALIBRATED), LARGEST_LOSS)
    fed_back = dict.fromkeys((m.TRELLIS, m.TRELLIS_NO_SCALES), LARGEST_LOSS_FED_BACK)
    for method, bounds in {**without, **fed_back}.items():
        for bits, largest in bounds.items():
            if (method, bits) not in by:
                continue
            lost, (least, most) = judge.accuracy_loss(by[method, bits].hits)
            yield {
                "target": f"{method}, {bits:g} bits: points of accuracy lost",
                "measured": lost,
                "95 % interval": f"{least:.2f} to {most:.2f}",
                "bound": f"at most {largest:g}" if largest else "none beyond the interval",
                "met": lost <= largest or (largest == 0 and least <= 0),
            }


def _below_rounding(judge: Judge, by: By) -> Iterator[dict[str, Any]]:
    """Without data or with diagonal moments: KL below rounding's at fewer stored bits."""
    for method in (m.NO_SCALES, m.NO_DATA, m.CALIBRATED, m.TRELLIS_NO_DATA):
        for bits in (2.0, 3.0, 4.0):
            if (method, bits) not in by or (m.ROUNDED, bits) not in by:
                continue
            ours, other = by[method, bits], by[m.ROUNDED, bits]
            low, high = judge.interval_of(ours.divergences - other.divergences)
            yield {
                "target": f"{method}, {bits:g} bits: KL below rounding, fewer stored bits",
                "measured": ours.kl,
                "95 % interval": f"difference {low:.4g} to {high:.4g}",
                "bound": f"below {other.kl:.4g} at {other.stored:.3f} bits",
                "met": ours.kl < other.kl and ours.stored < other.stored,
            }


def _errors(by: By) -> Iterator[dict[str, Any]]:
    """Mean relative output errors on held-out inputs against the strong GPTQ, and NF4."""
    pairs = [
        (m.TRELLIS_NO_SCALES, bits, m.STRONG_GPTQ, bits, decibels, FEWER_BITS_THAN_GPTQ)
        for bits, decibels in DECIBELS_BELOW_GPTQ.items()
    ]
    pairs += [(m.FED_BACK, bits, m.STRONG_GPTQ, bits, 0.0, 0.0) for bits in DECIBELS_BELOW_GPTQ]
    pairs += [(name, 3.0, m.NF4, 4.0, 0.0, 0.0) for name in (m.TRELLIS, m.FED_BACK)]
    for method, bits, rival, rival_bits, decibels, fewer in pairs:
        if (method, bits) not in by or (rival, rival_bits) not in by:
            continue
        ours, other = by[method, bits], by[rival, rival_bits]
        _, (low, high) = mean_ratio(list(other.output_errors), list(ours.output_errors))
        measured = 10 * math.log10(other.output_error / ours.output_error)
        yield {
            "target": f"{method}, {bits:g} bits: output error below {rival} {rival_bits:g} (dB)",
            "measured": measured,
            "95 % interval": f"per matrix {10 * math.log10(low):.2f} to "
            f"{10 * math.log10(high):.2f} dB",
            "bound": f"at least {decibels:g} dB, {fewer:g} fewer bits than {other.stored:.3f}",
            "met": measured >= decibels and ours.stored <= other.stored - fewer,
        }


def _kl(judge: Judge, by: By) -> Iterator[dict[str, Any]]:
    for bound in KL_BOUNDS:
        if bound.ours not in by or bound.other not in by:
            continue
        ours, other = by[bound.ours], by[bound.other]
        error = judge.log_ratio_error(ours.divergences, other.divergences)
        ratio = ours.kl / other.kl
        low, high = ratio * math.exp(-1.96 * error), ratio * math.exp(1.96 * error)
        yield {
            "target": f"{ours.method}, {ours.bits:g} bits: KL over that of "
            f"{other.method} {other.bits:g}",
            "measured": ratio,
            "95 % interval": f"{low:.3f} to {high:.3f}",
            "bound": f"at most {bound.share:g} at no more than {bound.stored:g} stored bits",
            "met": ratio <= bound.share and ours.stored <= bound.stored,
        }

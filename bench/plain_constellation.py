"""The codes for complex numbers, designed a second time in plain numpy for comparison.

Everything here is for a circular complex Gaussian of unit power: its magnitude has the density
``2 rho exp(-rho^2)`` and its phase is uniform. With the tail integrals ``P(t) = exp(-t^2)`` and
``M(t) = t exp(-t^2) + sqrt(pi)/2 erfc(t)`` (probability and mean magnitude above ``t``) every
quantity of the design has a closed form. Nothing is shared with the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import erfc, erfinv

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Constellation:
    """Points on rings: ring ``k`` has ``phases[k]`` points at radius ``radii[k]``.

    Attributes
    ----------
    radii : (K,) float64
        Radius of each ring, ascending.
    phases : (K,) int64
        Number of equally spaced points of each ring, the first at angle 0; they sum to 2^B.
    thresholds : (K - 1,) float64
        Magnitudes where one ring gives way to the next.
    project : bool
        Choose the phase first and compare the magnitude projected on it with the thresholds.
    scale_by_peak : bool
        Radii are fractions of the row's largest magnitude instead of its root mean square.
    """

    radii: Floats
    phases: Integers
    thresholds: Floats
    project: bool = False
    scale_by_peak: bool = False

    @property
    def starts(self) -> Integers:
        """Index of the first point of each ring."""
        return np.concatenate([[0], np.cumsum(self.phases)[:-1]])

    @property
    def points(self) -> npt.NDArray[np.complex128]:
        """All points, ring by ring from the inside."""
        turns = [np.arange(count) / count for count in self.phases]
        rings = [r * np.exp(2j * np.pi * turn) for r, turn in zip(self.radii, turns, strict=True)]
        return np.concatenate(rings)


def _tails(thresholds: Floats) -> tuple[Floats, Floats]:
    """Probability and mean magnitude above each threshold (infinity allowed)."""
    finite = np.where(np.isinf(thresholds), 0.0, thresholds)
    density = np.where(np.isinf(thresholds), 0.0, np.exp(-(finite**2)))
    return density, finite * density + np.sqrt(np.pi) / 2 * erfc(thresholds)


def _shrink(phases: Floats) -> Floats:
    """Mean projection of an arc of one of ``n`` phases on its middle: sin(pi/n) / (pi/n)."""
    return np.sinc(1.0 / phases)


def _settle_rings(
    phases: Floats, inner: Floats, iterations: int, tolerance: float
) -> tuple[Floats, Floats, Floats]:
    """Alternate radii and thresholds to their fixed point, for many phase splits (rows) at once.

    Returns the distortion (C,), the inner thresholds (C, K-1) and the radii (C, K).
    """
    factor = _shrink(phases)
    rows = len(phases)
    edges = np.concatenate([np.zeros((rows, 1)), inner, np.full((rows, 1), np.inf)], axis=1)
    previous = np.full(rows, np.inf)
    for _ in range(iterations):
        above, mean_above = _tails(edges)
        probability = above[:, :-1] - above[:, 1:]
        moment = mean_above[:, :-1] - mean_above[:, 1:]
        # Rings so far out that the difference of tails is noise keep their inner edge as radius.
        populated = probability > 1e-13
        mean = np.where(populated, moment / np.where(populated, probability, 1), edges[:, :-1])
        radii = factor * mean
        distortion = 1 - np.where(populated, radii**2 * probability, 0).sum(axis=1)
        if np.all(np.abs(previous - distortion) <= tolerance * distortion):
            break
        previous = distortion
        gap = 2 * (radii[:, 1:] * factor[:, 1:] - radii[:, :-1] * factor[:, :-1])
        crossing = (radii[:, 1:] ** 2 - radii[:, :-1] ** 2) / np.where(gap > 1e-12, gap, 1)
        crossing = np.where(gap > 1e-12, crossing, edges[:, 1:-1])
        edges[:, 1:-1] = np.maximum.accumulate(np.maximum(crossing, 1e-6), axis=1)
    return distortion, edges[:, 1:-1], radii


def _starting_split(points: int, rings: int) -> tuple[Integers, Floats]:
    """Phases per ring and thresholds from the best point density, exp(-rho^2 / 2) / (2 pi).

    Square cells under that density put the ring edges at ``2 erfinv(k / K)``.
    """
    edges = 2 * erfinv(np.arange(rings + 1) / rings)
    share = -np.diff(np.exp(-(edges**2) / 2))
    phases = np.maximum(1, np.round(share * points)).astype(np.int64)
    while phases.sum() != points:
        phases[np.argmax(phases)] += np.sign(points - phases.sum())
    return phases, edges[None, 1:-1]


def _moved(phases: Integers, step: int) -> Integers:
    """Every split that moves ``step`` points from one ring to another, one per row."""
    count = len(phases)
    moves = [
        phases + step * (np.eye(count, dtype=np.int64)[to] - np.eye(count, dtype=np.int64)[off])
        for off in range(count)
        for to in range(count)
        if off != to and phases[off] > step
    ]
    return np.array(moves, dtype=np.int64).reshape(-1, count)


def _search_rings(points: int, rings: int) -> tuple[float, Integers, Floats]:
    """Local search over the split of ``points`` into ``rings``, by moves of shrinking size."""
    phases, inner = _starting_split(points, rings)
    best, inner, _ = _settle_rings(phases[None].astype(float), inner, 200, 1e-9)
    step = max(1, points // 64)
    while step:
        moves = _moved(phases, step)
        if not len(moves):
            break
        starts = np.repeat(inner, len(moves), axis=0)
        distortion, edges, _ = _settle_rings(moves.astype(float), starts, 60, 1e-8)
        chosen = int(np.argmin(distortion))
        if distortion[chosen] < best[0] - 1e-8:
            best, phases = distortion[chosen : chosen + 1], moves[chosen]
            inner = edges[chosen : chosen + 1]
        else:
            step //= 2
    return float(best[0]), phases, inner


@lru_cache
def ring(bits: int) -> Constellation:
    """Unrestricted polar code: rings, phases, radii and thresholds optimized together."""
    points = 2**bits
    middle = int(np.sqrt(points / 2))
    counts = [count for count in range(max(1, middle - 1), middle + 3) if count <= points]
    _, phases, inner = min((_search_rings(points, count) for count in counts), key=lambda x: x[0])
    _, thresholds, radii = _settle_rings(phases[None].astype(float), inner, 10_000, 1e-12)
    return Constellation(radii[0], phases, thresholds[0])


def product_split(bits: int) -> tuple[int, int]:
    """Magnitude and phase bits with ``b_phase = b_magnitude + 2`` (one less for odd totals)."""
    magnitude = max(0, (bits + 1) // 2 - 1)
    return magnitude, bits - magnitude


@lru_cache
def product(bits: int) -> Constellation:
    """Lloyd-Max magnitudes of a Rayleigh variable times uniform phases, radii shrunk."""
    magnitude_bits, phase_bits = product_split(bits)
    levels = 2**magnitude_bits
    edges = np.concatenate([np.sqrt(-np.log1p(-np.arange(levels) / levels)), [np.inf]])
    for _ in range(20_000):
        above, mean_above = _tails(edges)
        centres = np.diff(mean_above) / np.diff(above)
        middles = (centres[1:] + centres[:-1]) / 2
        if np.allclose(middles, edges[1:-1], rtol=1e-12):
            break
        edges[1:-1] = middles
    phases = np.full(levels, 2**phase_bits, dtype=np.int64)
    radii = centres * _shrink(phases.astype(float))
    return Constellation(radii, phases, (radii[1:] + radii[:-1]) / 2, project=True)


@lru_cache
def uniform(bits: int) -> Constellation:
    """The paper's code: uniform magnitudes in [0, row's peak] times uniform phases."""
    magnitude_bits, phase_bits = (2, 2) if bits == 4 else product_split(bits)
    levels = 2**magnitude_bits
    phases = np.full(levels, 2**phase_bits, dtype=np.int64)
    radii = (np.arange(levels) + 0.5) / levels
    return Constellation(radii, phases, np.arange(1, levels) / levels, scale_by_peak=True)


DESIGNS = {"ring": ring, "product": product, "uniform": uniform}

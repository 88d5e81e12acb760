"""Intervals for the figures of the evaluation: Wilson for proportions, clustered for means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion.

    Parameters
    ----------
    successes, trials : int
        Counts; with no trial the interval is (0, 1).

    Returns
    -------
    low, high : float
        Bounds between 0 and 1.

    Examples
    --------
    >>> low, high = wilson_interval(95, 100)
    >>> round(low, 3), round(high, 3)
    (0.888, 0.978)
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z95 * _Z95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 / (1 + z2 / trials)
    half *= math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_mean(
    values: NDArray[np.float64], clusters: Sequence[int], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, tuple[float, float]]:
    """Mean with a standard error and an interval that respect clusters.

    Questions about one image are not independent, so whole images are drawn anew.

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
        One value per question.
    clusters : sequence of int
        The image of each value.
    resamples : int
        Bootstrap resamples.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    mean, standard_error : float
        The plain mean and the standard deviation of the resampled means.
    interval : tuple of float
        2.5 % and 97.5 % quantiles of the resampled means.
    """
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    groups = int(owner.max()) + 1
    sums = np.bincount(owner, weights=values, minlength=groups)
    sizes = np.bincount(owner, minlength=groups)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for index in range(resamples):
        drawn = rng.integers(0, groups, groups)
        means[index] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(means.std(ddof=1)), (float(low), float(high))

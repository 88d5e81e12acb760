"""AWQ-like rounding: input channels scaled by a power of their activity, then rounded in groups.

``W = (W diag(s)) diag(1/s)`` with ``s_j = E[x_j^2]^(alpha/2)`` (AWQ, arXiv 2306.00978, takes mean
magnitudes and searches alpha). Stored: what rounding stores, and a float16 per input channel; in
a network the channel scale can often be folded into the layer before, which is not assumed here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.baselines import Baseline, round_to_nearest


def activation_aware(
    weight: Tensor, second_moment: Tensor, bits: int, group: int = 64, alpha: float = 0.5
) -> Baseline:
    """Scale the columns by activity, round to nearest, scale back.

    Parameters
    ----------
    weight : Tensor, (m, n)
    second_moment : Tensor, (n,) or (n, n)
        Mean squares of the inputs, or E[x x^T], whose diagonal is used.
    bits, group : int
        As in ``round_to_nearest``.
    alpha : float
        Power of the root mean square.
    """
    mean_square = second_moment.diagonal() if second_moment.ndim == 2 else second_moment
    active = mean_square > 0
    scale = torch.where(active, mean_square.double(), 1).pow(alpha / 2)
    scale = scale / scale[active].log().mean().exp() if bool(active.any()) else scale
    # Quiet channels keep the smallest scale in use, so that they do not lift their group's range.
    scale = torch.where(active, scale, scale[active].min() if bool(active.any()) else 1.0)
    scale = scale.clamp(2.0**-10, 2.0**10).half().float()
    coded = round_to_nearest(weight.float() * scale, bits, group)
    return Baseline(coded.dense / scale, coded.stored_bits + 16 * len(scale))


def searched_activation_aware(
    weight: Tensor, second_moment: Tensor, bits: int, group: int = 64
) -> Baseline:
    """Choose alpha among 0, 0.05 ... 1 by the calibrated output error, as AWQ does per layer."""
    moment = second_moment.double()

    def error(coded: Baseline) -> float:
        difference = weight.double() - coded.dense.double()
        return float(((difference @ moment) * difference).sum())

    tried = [activation_aware(weight, moment, bits, group, step / 20) for step in range(21)]
    return min(tried, key=error)

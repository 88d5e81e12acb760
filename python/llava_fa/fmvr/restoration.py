"""Frequency-modulated visual restoration of one level of pooled tokens (design, section 10).

A grid ``x`` of pooled tokens is split into a low and a high part in two ways, both parts are
weighted per channel, and the sum of the two branches is what restoration adds to the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VARIANTS = ("both", "average", "max", "local_average", "none")
"""Both branches (the paper's), one of them, a local low pass in place of the global one, or no
restoration at all (plain Matryoshka pooling)."""


class RestorationBranch(nn.Module):
    """One branch: ``w_l · low + (1 + w_h) · high + a · x · high + b · x``, weights per channel.

    Parameters
    ----------
    channels
        C, the width of a token. ``w_l``, ``w_h`` and ``a`` begin at 0, ``b`` at 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.low_weight = nn.Parameter(torch.empty(channels))
        self.high_weight = nn.Parameter(torch.empty(channels))
        self.product_weight = nn.Parameter(torch.empty(channels))
        self.identity_weight = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values of the design."""
        for weight in (self.low_weight, self.high_weight, self.product_weight):
            nn.init.zeros_(weight)
        nn.init.ones_(self.identity_weight)

    def forward(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Combine a grid with its parts, (B, C, h, w) each; ``low`` may be (B, C, 1, 1)."""
        w_l, w_h, a, b = (
            weight[:, None, None]
            for weight in (
                self.low_weight,
                self.high_weight,
                self.product_weight,
                self.identity_weight,
            )
        )
        return w_l * low + (1 + w_h) * high + a * x * high + b * x


class FrequencyModulatedRestoration(nn.Module):
    """What restoration adds to a grid of pooled tokens: the sum of its branches.

    The average branch takes ``low`` as the mean of the grid and ``high = x - low`` (a saliency
    filter), and adds ``x`` once more; the max branch takes ``high`` as the 3 × 3 maximum and
    ``low = x - high`` (an anti-saliency filter). FMVR, arXiv 2603.11220.

    Parameters
    ----------
    channels
        C, the width of a token.
    variant
        ``"both"``, or an ablation: ``"average"`` or ``"max"`` (that branch alone), or
        ``"local_average"`` (both, but ``low`` of the average branch is the mean of the 3 × 3
        neighbours that exist).

    Raises
    ------
    ValueError
        The variant is none of these; ``"none"`` has no module.

    Examples
    --------
    >>> import torch
    >>> restoration = FrequencyModulatedRestoration(channels=4)
    >>> x = torch.randn(1, 4, 6, 6)
    >>> x = x + restoration(x)
    """

    def __init__(self, channels: int, variant: str = "both") -> None:
        super().__init__()
        if variant not in VARIANTS or variant == "none":
            raise ValueError(f"variant is {variant!r}, expected one of {VARIANTS[:-1]}")
        self.variant = variant
        self.average = RestorationBranch(channels) if variant != "max" else None
        self.max = RestorationBranch(channels) if variant != "average" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to ``x``, (B, C, h, w), in its dtype."""
        parts: list[Tensor] = []
        if self.average is not None:
            low, high = average_parts(x, local=self.variant == "local_average")
            parts.append(self.average(x, low, high) + x)
        if self.max is not None:
            low, high = max_parts(x)
            parts.append(self.max(x, low, high))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def average_parts(x: Tensor, *, local: bool = False) -> tuple[Tensor, Tensor]:
    """Split (B, C, h, w) into the mean, (B, C, 1, 1), and the rest.

    ``local`` takes the mean of the 3 × 3 neighbours that exist instead, (B, C, h, w).
    """
    if local:
        low = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    else:
        low = x.mean(dim=(2, 3), keepdim=True)
    return low, x - low


def max_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, C, h, w) into what lies below the 3 × 3 maximum, and that maximum."""
    high = functional.max_pool2d(x, 3, stride=1, padding=1)
    return x - high, high

"""What else could one do with the same bits? Simple codes and low rank without the library.

Every baseline is a function from a weight matrix to a ``Baseline``: the dense reconstruction and
all stored bits (codes, scales, zero points, factors).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.special import erf, erfinv
from torch import Tensor

from bench.group_grid import SMALLEST_SCALE, cut, group_bits, range_grid, uncut
from bench.plain_torch import (
    half_spectrum,
    inverse_half_spectrum,
    random_signs,
    relative_error,
    truncated_svd,
)

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The sixteen levels of NormalFloat4 (QLoRA, arXiv 2305.14314, appendix E)."""


@dataclass(frozen=True)
class Baseline:
    """A reconstruction and what it costs to store."""

    dense: Tensor
    stored_bits: int

    @property
    def bits_per_weight(self) -> float:
        """All stored bits over the number of weights."""
        return self.stored_bits / self.dense.numel()


def round_to_nearest(weight: Tensor, bits: int, group: int = 64) -> Baseline:
    """Asymmetric min/max rounding: float16 scale and ``bits``-bit zero point per group."""
    values = cut(weight.float(), group)
    dense = uncut(range_grid(values, bits).round(values), weight.shape[1])
    return Baseline(dense, group_bits(*weight.shape, bits, group))


def normal_float_4(
    weight: Tensor, group: int = 64, scale_dtype: torch.dtype = torch.float16
) -> Baseline:
    """NF4: sixteen quantile levels times an absolute maximum per group."""
    codes, scale = normal_float_4_codes(weight, group, scale_dtype)
    dense = uncut(torch.tensor(NF4_LEVELS)[codes] * scale, weight.shape[1])
    return Baseline(dense, weight.numel() * 4 + scale.numel() * 8 * scale_dtype.itemsize)


def normal_float_4_codes(
    weight: Tensor, group: int, scale_dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor]:
    """Indices of the NF4 levels, (m, groups, group), and float32 values of the stored scales."""
    values = cut(weight.float(), group)
    scale = values.abs().amax(dim=2, keepdim=True).clamp_min(SMALLEST_SCALE)
    scale = scale.to(scale_dtype).float()
    levels = torch.tensor(NF4_LEVELS)
    codes = torch.bucketize((values / scale).contiguous(), (levels[1:] + levels[:-1]) / 2)
    return codes, scale


@lru_cache
def lloyd_max_levels(bits: int) -> Tensor:
    """The 2^bits levels of least mean squared error for a standard normal variable."""
    count = 2**bits
    place = torch.arange(1, count, dtype=torch.float64) / count
    inner = 2**0.5 * torch.as_tensor(erfinv(2 * place.numpy() - 1)) * 1.5
    infinite = torch.tensor([torch.inf], dtype=torch.float64)
    for _ in range(100_000):
        edges = torch.cat([-infinite, inner, infinite])
        density = torch.exp(-edges.square() / 2) / (2 * torch.pi) ** 0.5
        share = torch.as_tensor(erf((edges / 2**0.5).numpy())).diff() / 2
        levels = -density.diff() / share
        moved = (levels[1:] + levels[:-1]) / 2
        if torch.allclose(moved, inner, rtol=0, atol=1e-12):
            break
        inner = moved
    return levels.float()


def _rectangular(weight: Tensor, levels: Tensor, by_peak: bool, seed: int) -> Baseline:
    """Code real and imaginary parts of the signed half spectrum apart, one scale per row."""
    row, column = random_signs(weight.shape[0], weight.shape[1], seed)
    spectrum = half_spectrum(weight.float() * row[:, None] * column)
    parts = torch.view_as_real(spectrum).reshape(len(spectrum), -1)
    if by_peak:
        scale = parts.abs().amax(dim=1, keepdim=True)
    else:
        scale = parts.square().mean(dim=1, keepdim=True).sqrt()
    scale = scale.clamp_min(2.0**-24)
    coded = levels[torch.bucketize(parts / scale, (levels[1:] + levels[:-1]) / 2)]
    fitted = (parts * coded).sum(dim=1, keepdim=True) / coded.square().sum(dim=1, keepdim=True)
    values = torch.view_as_complex((coded * fitted.half().float()).reshape(*spectrum.shape, 2))
    dense = inverse_half_spectrum(values, len(weight)) * row[:, None] * column
    bits = 2 * (len(levels) - 1).bit_length()
    return Baseline(dense, spectrum.numel() * bits + len(spectrum) * 16)


def lloyd_max_rectangular(weight: Tensor, bits: int, seed: int = 0) -> Baseline:
    """Optimal real codes of ``bits`` bits for the real and imaginary parts of the spectrum."""
    return _rectangular(weight, lloyd_max_levels(bits), False, seed)


def uniform_rectangular(weight: Tensor, bits: int, seed: int = 0) -> Baseline:
    """Uniform real codes over plus and minus the row's peak, for real and imaginary parts."""
    levels = (torch.arange(2**bits) + 0.5) / 2 ** (bits - 1) - 1
    return _rectangular(weight, levels, True, seed)


def spatial_low_rank(weight: Tensor, rank: int) -> Baseline:
    """The best real approximation of a rank, factors in float16 (counted; error unrounded)."""
    left, right = truncated_svd(weight.float(), rank, exact=True)
    return Baseline(left @ right, 16 * (left.numel() + right.numel()))


def spectral_low_rank(weight: Tensor, rank: int) -> Baseline:
    """The best approximation of a complex rank in the half spectrum, factors as float16 pairs."""
    left, right = truncated_svd(half_spectrum(weight.float()), rank, exact=True)
    dense = inverse_half_spectrum(left @ right, len(weight))
    return Baseline(dense, 32 * (left.numel() + right.numel()))


__all__ = [
    "Baseline",
    "lloyd_max_levels",
    "lloyd_max_rectangular",
    "normal_float_4",
    "relative_error",
    "round_to_nearest",
    "spatial_low_rank",
    "spectral_low_rank",
    "uniform_rectangular",
]

"""Weight matrices of several kinds, seeded: what the benches measure besides trained weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, int]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(shape: Shape, seed: int = 0) -> Tensor:
    """Independent standard normal entries."""
    return torch.randn(*shape, generator=_generator(seed))


def heavy_tailed(shape: Shape, seed: int = 0) -> Tensor:
    """Student-t entries with 3 degrees of freedom: single weights of tens of deviations."""
    generator = _generator(seed)
    chi_square = torch.randn(3, *shape, generator=generator).square().sum(dim=0)
    return torch.randn(*shape, generator=generator) / (chi_square / 3).sqrt()


def outlier_channels(shape: Shape, seed: int = 0) -> Tensor:
    """Normal entries whose rows and columns have log-normal sizes, a few of them very large."""
    generator = _generator(seed)
    rows = (0.5 * torch.randn(shape[0], 1, generator=generator)).exp()
    columns = (0.7 * torch.randn(1, shape[1], generator=generator)).exp()
    return torch.randn(*shape, generator=generator) * rows * columns


def smooth(shape: Shape, seed: int = 0) -> Tensor:
    """Slowly varying along both axes: energy at low frequencies, as in position embeddings."""
    generator = _generator(seed)
    rows, columns = (torch.arange(count, dtype=torch.float64) for count in shape)
    spectrum = torch.randn(*shape, generator=generator, dtype=torch.float64)
    spectrum = spectrum / (1 + rows[:, None] / 4 + columns[None, :] / 4) ** 2

    def cosines(count: int) -> Tensor:
        place = torch.arange(count, dtype=torch.float64)
        return (torch.pi / count * (place[:, None] + 0.5) * place[None, :]).cos()

    values = cosines(shape[0]) @ spectrum @ cosines(shape[1]).T
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (values / values.std() + 0.05 * noise).float()


def low_rank_plus_noise(shape: Shape, seed: int = 0) -> Tensor:
    """A decaying low-rank part of twice the energy of the white part on top of it."""
    generator = _generator(seed)
    rank = max(1, min(shape) // 8)
    left = torch.randn(shape[0], rank, generator=generator)
    right = torch.randn(rank, shape[1], generator=generator)
    decay = torch.arange(1, rank + 1).float().rsqrt()
    part = left * decay @ right
    return 2**0.5 * part / part.std() + torch.randn(*shape, generator=generator)


KINDS: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian,
    "heavy_tailed": heavy_tailed,
    "outlier_channels": outlier_channels,
    "smooth": smooth,
    "low_rank_plus_noise": low_rank_plus_noise,
}

"""The chain of pools and restorations that turns a grid of visual tokens into fewer tokens.

Two kinds of grids, one rule each:

- **Square, of a known side** (LLaVA: 24 × 24): the product of the pools divides the side, and a
  scale is named by its exact number of tokens: 576, 144, 36, 9, 1 for the pools 2, 2, 2, 3.
- **Any shape** (Qwen-type models, ``side=None``): windows at the right and lower edge that stick
  out average the tokens that exist, so h × w tokens become ⌈h/p⌉ × ⌈w/p⌉. The number of tokens
  differs from image to image, so a scale is named by a limit: the finest level with at most so
  many tokens.

After every pool a restoration is added, except where a square grid has become a single token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .restoration import VARIANTS, FrequencyModulatedRestoration

Grid = tuple[int, int]


class VisualTokenPyramid(nn.Module):
    """Visual tokens at every scale of a pyramid (FMVR, arXiv 2603.11220; design, section 10).

    Parameters
    ----------
    channels
        C, the width of a token.
    pools
        Sides of the pooling windows, finest level first, each at least 2.
    side
        Side of the square grids, a multiple of the pools' product; None for grids of any shape.
    variant
        See :class:`FrequencyModulatedRestoration`; ``"none"`` pools without restoring.

    Raises
    ------
    ValueError
        The pools do not divide the side, or an argument lies outside its range.

    Examples
    --------
    >>> import torch
    >>> pyramid = VisualTokenPyramid(channels=8, pools=(2, 2, 3), side=12)
    >>> pyramid.scales
    (144, 36, 9, 1)
    >>> [tuple(tokens.shape) for tokens in pyramid(torch.randn(2, 144, 8), (36, 1))]
    [(36, 8), (1, 8)]
    """

    def __init__(
        self,
        channels: int,
        pools: Sequence[int],
        side: int | None = None,
        variant: str = "both",
    ) -> None:
        super().__init__()
        self.pools, self.side, self.variant = tuple(pools), side, variant
        _check(channels, self.pools, side, variant)
        ends_in_one = side is not None and side == math.prod(self.pools)
        restored = len(self.pools) - 1 if ends_in_one else len(self.pools)
        self.restorations = nn.ModuleList(
            FrequencyModulatedRestoration(channels, variant)
            for _ in range(0 if variant == "none" else restored)
        )

    @property
    def scales(self) -> tuple[int, ...]:
        """Numbers of tokens of all levels of a square grid, the full one first.

        Raises
        ------
        ValueError
            The grids have any shape, so there is no such list; see :meth:`token_counts`.
        """
        if self.side is None:
            raise ValueError(
                "grids of any shape have no common scales; use token_counts((height, width))"
            )
        return self.token_counts((self.side, self.side))

    def grids(self, grid: Grid) -> list[Grid]:
        """Return height and width of every level of a grid, the full one first."""
        self._check_grid(grid)
        found = [grid]
        for pool in self.pools:
            height, width = found[-1]
            found.append((-(-height // pool), -(-width // pool)))
        return found

    def token_counts(self, grid: Grid) -> tuple[int, ...]:
        """Return the number of tokens of every level of a grid, the full one first."""
        return tuple(height * width for height, width in self.grids(grid))

    def level_of(self, visual_tokens: int, grid: Grid | None = None) -> int:
        """Return the level that has a number of tokens, or at most that many (``side=None``).

        Raises
        ------
        ValueError
            A square grid has no such scale, or even the coarsest level has more tokens.
        """
        counts = self.token_counts(self._given(grid))
        if self.side is not None:
            if visual_tokens not in counts:
                raise ValueError(
                    f"visual_tokens is {visual_tokens}; the {self.side} x {self.side} grid has the "
                    f"scales {', '.join(map(str, sorted(counts)))}"
                )
            return counts.index(visual_tokens)
        fitting = [level for level, count in enumerate(counts) if count <= visual_tokens]
        if not fitting:
            raise ValueError(
                f"visual_tokens is {visual_tokens}, but the coarsest level of a "
                f"{' x '.join(map(str, self._given(grid)))} grid has {counts[-1]} tokens"
            )
        return fitting[0]

    def levels(
        self, tokens: Tensor, grid: Grid | None = None, depth: int | None = None
    ) -> Sequence[Tensor]:
        """Return the tokens of every level down to ``depth``.

        Parameters
        ----------
        tokens
            (B, h · w, C), rows of the grid one after the other.
        grid
            Height and width; may be left out for square grids.
        depth
            The last level wanted, 0 for the tokens as they are; the coarsest if None.

        Returns
        -------
        list of Tensor
            (B, n, C) each; level 0 is ``tokens`` itself.
        """
        height, width = self._given(grid)
        self._check_grid((height, width))
        if tokens.ndim != 3 or tokens.shape[1] != height * width:
            raise ValueError(
                f"tokens have the shape {tuple(tokens.shape)}, expected (images, "
                f"{height} x {width} = {height * width}, channels)"
            )
        found = [tokens]
        x = tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
        for level in range(len(self.pools) if depth is None else depth):
            x = self._next(x, level)
            found.append(x.flatten(2).transpose(1, 2))
        return found

    def forward(
        self, tokens: Tensor, visual_tokens: int | Sequence[int], grid: Grid | None = None
    ) -> list[Tensor]:
        """Return every image's tokens at its scale.

        Parameters
        ----------
        tokens
            (B, h · w, C), rows of the grid one after the other.
        visual_tokens
            One scale for all images, or one for each.
        grid
            Height and width; may be left out for square grids.

        Returns
        -------
        list of Tensor
            (n, C) for each image, n its scale. At full scale the given tokens, unchanged.
        """
        wanted = [visual_tokens] * len(tokens) if isinstance(visual_tokens, int) else visual_tokens
        if len(wanted) != len(tokens):
            raise ValueError(f"{len(wanted)} scales were given for {len(tokens)} images")
        depths = [self.level_of(count, grid) for count in wanted]
        levels = self.levels(tokens, grid, max(depths, default=0))
        return [levels[depth][image] for image, depth in enumerate(depths)]

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"pools={self.pools}, side={self.side}, variant={self.variant!r}"

    def _next(self, x: Tensor, level: int) -> Tensor:
        x = functional.avg_pool2d(
            x, self.pools[level], ceil_mode=self.side is None, count_include_pad=False
        )
        if level < len(self.restorations):
            x = self.restorations[level](x) + x
        return x

    def _given(self, grid: Grid | None) -> Grid:
        if grid is not None:
            return grid
        if self.side is None:
            raise ValueError("grids of any shape need their height and width")
        return self.side, self.side

    def _check_grid(self, grid: Grid) -> None:
        if self.side is not None and grid != (self.side, self.side):
            raise ValueError(
                f"the grid is {grid[0]} x {grid[1]}, the pyramid is for {self.side} x {self.side}; "
                "build it with side=None for grids of any shape"
            )


def pools_of(side: int, scales: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the pools that lead a square grid through some scales.

    Parameters
    ----------
    side
        Side of the grid.
    scales
        Numbers of tokens in any order, with or without the full one; None for the longest chain:
        the side's prime factors, smallest first, which is 2, 2, 2, 3 for 24.

    Raises
    ------
    ValueError
        A scale is not the square of a divisor of the next finer one's side.

    Examples
    --------
    >>> pools_of(24)
    (2, 2, 2, 3)
    >>> pools_of(24, (576, 144, 36))
    (2, 2)
    """
    if scales is None:
        return _prime_factors(side)
    pools = []
    current = side
    for count in sorted({*scales} - {side * side}, reverse=True):
        root = math.isqrt(max(count, 0))
        if count < 1 or root * root != count or current % root:
            raise ValueError(
                f"scale {count} cannot follow {current * current} tokens: expected the square of a "
                f"divisor of {current} (the grid is {side} x {side})"
            )
        pools.append(current // root)
        current = root
    if not pools:
        raise ValueError(f"scales are {list(scales)}, expected at least one below {side * side}")
    return tuple(pools)


def _prime_factors(number: int) -> tuple[int, ...]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return tuple(factors)


def _check(channels: int, pools: tuple[int, ...], side: int | None, variant: str) -> None:
    if channels < 1:
        raise ValueError(f"channels is {channels}, expected at least 1")
    if not pools or any(pool < 2 for pool in pools):
        raise ValueError(f"pools are {pools}, expected at least one, each at least 2")
    if side is not None and (side < 1 or side % math.prod(pools)):
        raise ValueError(
            f"pools {pools} do not divide a grid of {side} x {side}: their product is "
            f"{math.prod(pools)}"
        )
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, expected one of {VARIANTS}")

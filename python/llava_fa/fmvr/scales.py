"""Which grids a pyramid of visual tokens goes through, and how a scale is named.

Two kinds of grids, one rule each:

- **Square, of a known side** (LLaVA: 24 × 24): the product of the pools divides the side, and a
  scale is named by its exact number of tokens: 576, 144, 36, 9, 1 for the pools 2, 2, 2, 3.
- **Any shape** (Qwen-type models, ``side=None``): windows at the right and lower edge that stick
  out average the tokens that exist, so h × w tokens become ⌈h/p⌉ × ⌈w/p⌉. The number of tokens
  differs from image to image, so a scale is named by a limit: the finest level with at most so
  many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Grid = tuple[int, int]


@dataclass(frozen=True)
class PyramidShape:
    """The grids of a pyramid, without its weights.

    Parameters
    ----------
    pools
        Sides of the pooling windows, finest level first, each at least 2.
    side
        Side of the square grids, a multiple of the pools' product; None for grids of any shape.

    Raises
    ------
    ValueError
        The pools do not divide the side, or are too small.
    """

    pools: tuple[int, ...]
    side: int | None = None

    def __post_init__(self) -> None:
        """Validate."""
        if not self.pools or any(pool < 2 for pool in self.pools):
            raise ValueError(f"pools are {self.pools}, expected at least one, each at least 2")
        if self.side is not None and (self.side < 1 or self.side % math.prod(self.pools)):
            raise ValueError(
                f"pools {self.pools} do not divide a grid of {self.side} x {self.side}: their "
                f"product is {math.prod(self.pools)}"
            )

    @property
    def ends_in_one(self) -> bool:
        """Whether the coarsest level is a single token, whatever the image."""
        return self.side is not None and self.side == math.prod(self.pools)

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

    def given(self, grid: Grid | None) -> Grid:
        """Return the grid, which may be left out where all are the same square."""
        if grid is None and self.side is None:
            raise ValueError("grids of any shape need their height and width")
        found = grid if grid is not None else (self.side or 0, self.side or 0)
        if self.side is not None and found != (self.side, self.side):
            raise ValueError(
                f"the grid is {found[0]} x {found[1]}, the pyramid is for {self.side} x "
                f"{self.side}; build it with side=None for grids of any shape"
            )
        return found

    def grids(self, grid: Grid | None = None) -> list[Grid]:
        """Return height and width of every level of a grid, the full one first."""
        found = [self.given(grid)]
        for pool in self.pools:
            height, width = found[-1]
            found.append((-(-height // pool), -(-width // pool)))
        return found

    def token_counts(self, grid: Grid | None = None) -> tuple[int, ...]:
        """Return the number of tokens of every level of a grid, the full one first."""
        return tuple(height * width for height, width in self.grids(grid))

    def level_of(self, visual_tokens: int, grid: Grid | None = None) -> int:
        """Return the level that has a number of tokens, or at most that many (``side=None``).

        Raises
        ------
        ValueError
            A square grid has no such scale, or even the coarsest level has more tokens.
        """
        counts = self.token_counts(grid)
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
                f"{' x '.join(map(str, self.given(grid)))} grid has {counts[-1]} tokens"
            )
        return fitting[0]


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

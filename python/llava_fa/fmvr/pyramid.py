"""The chain of pools and restorations that turns a grid of visual tokens into fewer tokens.

After every pool a restoration is added, except where a square grid has become a single token
(design, section 10). ``scales.py`` has the rules for grids and for the names of scales.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .restoration import VARIANTS, FrequencyModulatedRestoration
from .scales import Grid, PyramidShape


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
    >>> pyramid.shape.scales
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
        if channels < 1:
            raise ValueError(f"channels is {channels}, expected at least 1")
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}, expected one of {VARIANTS}")
        self.shape, self.variant = PyramidShape(tuple(pools), side), variant
        restored = len(self.shape.pools) - int(self.shape.ends_in_one)
        self.restorations = nn.ModuleList(
            FrequencyModulatedRestoration(channels, variant)
            for _ in range(0 if variant == "none" else restored)
        )

    def levels(
        self, tokens: Tensor, grid: Grid | None = None, depth: int | None = None
    ) -> list[Tensor]:
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
        height, width = self.shape.given(grid)
        if tokens.ndim != 3 or tokens.shape[1] != height * width:
            raise ValueError(
                f"tokens have the shape {tuple(tokens.shape)}, expected (images, "
                f"{height} x {width} = {height * width}, channels)"
            )
        found = [tokens]
        x = tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
        for level in range(len(self.shape.pools) if depth is None else depth):
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
        depths = [self.shape.level_of(count, grid) for count in wanted]
        levels = self.levels(tokens, grid, max(depths, default=0))
        return [levels[depth][image] for image, depth in enumerate(depths)]

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"pools={self.shape.pools}, side={self.shape.side}, variant={self.variant!r}"

    def _next(self, x: Tensor, level: int) -> Tensor:
        x = functional.avg_pool2d(
            x,
            self.shape.pools[level],
            ceil_mode=self.shape.side is None,
            count_include_pad=False,
        )
        if level < len(self.restorations):
            x = self.restorations[level](x) + x
        return x

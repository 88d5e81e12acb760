"""How many placeholders an image takes in the prompt, at full scale and at others, per family.

A layout is built from a configuration alone, so that a processor can ask it without a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .scales import PyramidShape

Scales = int | Sequence[int] | Tensor
"""One scale for all images of a call, or one for each."""


IMAGE_KEYS = (
    "pixel_values",
    "image_sizes",
    "image_grid_thw",
    "vision_feature_layer",
    "vision_feature_select_strategy",
)
"""Arguments of ``forward`` that describe images and that ``get_image_features`` takes."""


class ImageLayout(Protocol):
    """What a processor and a model ask about the images of a call."""

    @property
    def shape(self) -> PyramidShape:
        """The grids of the pyramid."""

    def images(self, inputs: Mapping[str, Any]) -> int:
        """Return how many images there are; 0 for a call without any."""

    def full(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return the number of placeholders of every image at full scale."""

    def reduced(self, inputs: Mapping[str, Any], scales: Sequence[int]) -> list[int]:
        """Return the number of placeholders of every image at its scale."""


@dataclass(frozen=True)
class SquareLayout:
    """LLaVA-1.5: every image is one square grid."""

    shape: PyramidShape

    def images(self, inputs: Mapping[str, Any]) -> int:
        """See :class:`ImageLayout`."""
        pixels = inputs.get("pixel_values")
        return 0 if pixels is None else len(pixels)

    def full(self, inputs: Mapping[str, Any]) -> list[int]:
        """See :class:`ImageLayout`."""
        return [self.shape.scales[0]] * self.images(inputs)

    def reduced(self, inputs: Mapping[str, Any], scales: Sequence[int]) -> list[int]:
        """See :class:`ImageLayout`; the scale is the number of placeholders."""
        return [self.shape.scales[self.shape.level_of(scale)] for scale in scales]


@dataclass(frozen=True)
class TiledLayout:
    """LLaVA-NeXT: a square grid for the whole image and for each tile.

    A scale is the number of tokens of one grid. The tiles' grids are laid side by side, what the
    image was padded with is cut off, and a token ends every row.
    """

    shape: PyramidShape
    tile_size: int
    pinpoints: list[list[int]]

    def images(self, inputs: Mapping[str, Any]) -> int:
        """See :class:`ImageLayout`."""
        sizes = inputs.get("image_sizes")
        return 0 if sizes is None else len(sizes)

    def full(self, inputs: Mapping[str, Any]) -> list[int]:
        """See :class:`ImageLayout`."""
        return self.reduced(inputs, [self.shape.scales[0]] * self.images(inputs))

    def reduced(self, inputs: Mapping[str, Any], scales: Sequence[int]) -> list[int]:
        """See :class:`ImageLayout`."""
        sizes = [_pair(size) for size in inputs["image_sizes"]]
        return [self._count(size, scale) for size, scale in zip(sizes, scales, strict=True)]

    def tiles(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of tiles for an image of (height, width) pixels."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        shape = get_anyres_image_grid_shape(image_size, self.pinpoints, self.tile_size)
        return int(shape[0]), int(shape[1])

    def joined(self, tiles: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Lay the tiles' grids side by side and cut the padding off.

        Parameters
        ----------
        tiles
            (tiles, side, side, C).

        Returns
        -------
        Tensor
            (C, height, width) in tokens.
        """
        from transformers.models.llava_next.modeling_llava_next import unpad_image

        rows, columns = self.tiles(image_size)
        side, channels = tiles.shape[1], tiles.shape[-1]
        grid = tiles.view(rows, columns, side, side, channels).permute(4, 0, 2, 1, 3)
        grid = grid.reshape(channels, rows * side, columns * side)
        return torch.as_tensor(unpad_image(grid, image_size))

    def _count(self, image_size: tuple[int, int], scale: int) -> int:
        side = math.isqrt(self.shape.scales[self.shape.level_of(scale)])
        rows, columns = self.tiles(image_size)
        tiles = torch.empty(rows * columns, side, side, 1, device="meta")
        _, height, width = self.joined(tiles, image_size).shape
        return side * side + height * (width + 1)


@dataclass(frozen=True)
class MergedLayout:
    """Qwen2.5-VL: a grid of any shape per image, after patches were merged.

    A scale is a limit: the finest level with at most so many tokens.
    """

    shape: PyramidShape
    merge_size: int

    def images(self, inputs: Mapping[str, Any]) -> int:
        """See :class:`ImageLayout`."""
        grids = inputs.get("image_grid_thw")
        return 0 if grids is None else len(grids)

    def full(self, inputs: Mapping[str, Any]) -> list[int]:
        """See :class:`ImageLayout`."""
        return [frames * height * width for frames, height, width in self.grids(inputs)]

    def reduced(self, inputs: Mapping[str, Any], scales: Sequence[int]) -> list[int]:
        """See :class:`ImageLayout`."""
        grids = self.reduced_grids(self.grids(inputs), scales)
        return [frames * height * width for frames, height, width in grids]

    def grids(self, inputs: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """Return frames, height and width of every image in tokens."""
        merge = self.merge_size
        found = torch.as_tensor(inputs["image_grid_thw"]).tolist()
        return [(frames, height // merge, width // merge) for frames, height, width in found]

    def reduced_grids(
        self, grids: Sequence[tuple[int, int, int]], scales: Sequence[int]
    ) -> list[tuple[int, int, int]]:
        """Return the grids at their scales."""
        found = []
        for (frames, *size), scale in zip(grids, scales, strict=True):
            grid = size[0], size[1]
            found.append((frames, *self.shape.grids(grid)[self.shape.level_of(scale, grid)]))
        return found


def layout_of(config: Any) -> ImageLayout:
    """Return the layout of a configuration with FMVR.

    Raises
    ------
    ValueError
        The configuration has no FMVR.
    """
    settings = getattr(config, "fmvr", None)
    if settings is None:
        raise ValueError(
            f"a configuration of type {config.model_type!r} has no FMVR; attach it to the model "
            "with llava_fa.fmvr.attach_fmvr(model)"
        )
    shape = PyramidShape(tuple(settings["pools"]), settings["side"])
    if config.model_type.endswith("qwen2_5_vl"):
        return MergedLayout(shape, config.vision_config.spatial_merge_size)
    if config.model_type.endswith("llava_next"):
        pinpoints = [list(pair) for pair in config.image_grid_pinpoints]
        return TiledLayout(shape, config.vision_config.image_size, pinpoints)
    return SquareLayout(shape)


def scales_of(visual_tokens: Scales, images: int) -> list[int]:
    """Return one scale per image.

    Raises
    ------
    ValueError
        There are not as many scales as images.
    """
    if isinstance(visual_tokens, int):
        return [visual_tokens] * images
    scales = [int(scale) for scale in visual_tokens]
    if len(scales) != images:
        raise ValueError(
            f"visual_tokens has {len(scales)} scales, expected one for each of the {images} images"
        )
    return scales


def split_images(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what describes images, and the rest of a model's inputs."""
    images = {key: inputs[key] for key in IMAGE_KEYS if inputs.get(key) is not None}
    return images, {key: value for key, value in inputs.items() if key not in IMAGE_KEYS}


def _pair(size: Any) -> tuple[int, int]:
    height, width = size.tolist() if isinstance(size, Tensor) else size
    return int(height), int(width)

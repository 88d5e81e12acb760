"""Draws accuracy over visual tokens, and the low and high parts of example images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.tiny_model import ROOT
from llava_fa.capture import load_processor
from llava_fa.fmvr.restoration import average_parts, max_parts

Row = dict[str, Any]


def draw_accuracy(rows: Sequence[Row], untrained: float, path: Path) -> None:
    """A line per variant, with the interval of the mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = sorted(
            (row for row in rows if row["variant"] == variant), key=lambda row: row["visual tokens"]
        )
        places = range(len(own))
        axes.plot(places, [row["accuracy %"] for row in own], "o-", label=variant)
        low, high = ([row[f"{side} %"] for row in own] for side in ("low", "high"))
        axes.fill_between(places, low, high, alpha=0.12)
        axes.set_xticks(list(places), [str(row["visual tokens"]) for row in own])
    axes.axhline(untrained, linestyle="--", color="grey", linewidth=1, label="before training")
    axes.set_xlabel("visual tokens")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_parts(model: Any, folder: Path, path: Path) -> None:
    """Size of the parts that the first restoration sees, place by place, on the example images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    processor = load_processor(folder)
    files = sorted((ROOT / "examples" / "images").glob("*.png"))
    titles = ("image", "high, average branch", "low, max branch", "after restoration")
    figure, axes = pyplot.subplots(
        len(files), len(titles), figsize=(8, 2 * len(files)), layout="constrained"
    )
    for line, file in zip(axes, files, strict=True):
        with Image.open(file) as image:
            picture = image.convert("RGB")
        line[0].imshow(np.asarray(picture))
        pixels = processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
        for axis, part in zip(line[1:], _parts(model, pixels), strict=True):
            axis.imshow(part, cmap="magma")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


@torch.no_grad()
def _parts(model: Any, pixels: torch.Tensor) -> list[Any]:
    """Lengths over channels of what the title says, (height, width) each."""
    _, (tokens,) = model.model.encode_images(pixel_values=pixels)
    pyramid = model.fmvr
    side = pyramid.shape.side
    grid = tokens.transpose(1, 2).reshape(1, -1, side, side)
    pooled = torch.nn.functional.avg_pool2d(grid, pyramid.shape.pools[0])
    restored = pooled + pyramid.restorations[0](pooled)
    parts = (average_parts(pooled)[1], max_parts(pooled)[0], restored)
    return [part[0].norm(dim=0).numpy() for part in parts]

"""The demonstration's table: accuracy over visual tokens and stored bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from .fmvr import attach_fmvr, elastic_processor
from .fmvr.fixed_scale import AtScale

PYRAMID = "pyramid.safetensors"
"""Of the example's folder: the trained weights of its pyramid."""

ScaleRow = tuple[int, tuple[float, ...]]
"""Visual tokens, and the accuracy of each model."""


def accuracy_by_scale(
    example: Path,
    models: Sequence[Any],
    processor: Any,
    accuracy: Callable[[Any, Any], float],
) -> tuple[ScaleRow, ...]:
    """Score models with the example's pyramid at all its scales, the finest first.

    Parameters
    ----------
    example
        Folder; without a trained pyramid in it there are no rows.
    models
        The example's model, compressed or not; they get the pyramid.
    processor
        Theirs.
    accuracy
        Scores a model and a processor.
    """
    path = example / PYRAMID
    if not path.exists():
        return ()
    weights = load_file(path)
    for model in models:
        attach_fmvr(model)
        model.fmvr.load_state_dict(weights)
    elastic = elastic_processor(processor, models[0].config)
    return tuple(
        (scale, tuple(accuracy(AtScale(model, scale), AtScale(elastic, scale)) for model in models))
        for scale in models[0].fmvr.shape.scales
    )


def scale_lines(rows: Sequence[ScaleRow], bits: Sequence[float]) -> list[str]:
    """Return the table as the command line shows it, with the stored bits of each model."""
    head = f"{'accuracy at visual tokens':<30}"
    lines = [head + "".join(f"{f'{count:.3g} bits':>12}" for count in bits)]
    for scale, found in rows:
        lines.append(f"{scale:>30}" + "".join(f"{value:>12.4f}" for value in found))
    return lines

"""Shares a total of visual tokens out to the frames of a video.

Frames are images of one prompt, each with a scale of its own: the result is the ``visual_tokens``
of the call.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BudgetError
from .scales import PyramidShape


def frame_scales(
    frames: int,
    max_visual_tokens: int,
    shape: PyramidShape,
    importance: Sequence[float] | None = None,
) -> list[int]:
    """Return a scale for each frame, together within a total.

    All frames get the finest scale that fits for all; what is left raises frames to the next finer
    scale, the most important first, or, without importance, frames spread evenly over the video.

    Parameters
    ----------
    frames
        Number of frames.
    max_visual_tokens
        The total, 180 to 720 for the five frames of the paper's rows on videos.
    shape
        Of the model's pyramid, ``model.fmvr.shape``; square grids.
    importance
        A number for each frame, larger for more important ones.

    Raises
    ------
    BudgetError
        The total is less than the coarsest scale needs for all frames; ``minimum`` is that.
    ValueError
        There are no frames, or importance is not one number for each.

    Examples
    --------
    >>> shape = PyramidShape((2, 2, 2, 3), side=24)
    >>> frame_scales(5, 180, shape), frame_scales(5, 720, shape)
    ([36, 36, 36, 36, 36], [144, 144, 144, 144, 144])
    >>> frame_scales(5, 400, shape)
    [144, 36, 144, 36, 36]
    """
    if frames < 1:
        raise ValueError(f"frames is {frames}, expected at least 1")
    if importance is not None and len(importance) != frames:
        raise ValueError(f"importance has {len(importance)} numbers for {frames} frames")
    counts = shape.scales
    fitting = [count for count in counts if count * frames <= max_visual_tokens]
    if not fitting:
        minimum = counts[-1] * frames
        raise BudgetError(
            f"max_visual_tokens is {max_visual_tokens}, below the {minimum} that {frames} frames "
            "need at the coarsest scale; raise it, or take fewer frames",
            minimum,
        )
    base = fitting[0]
    level = counts.index(base)
    scales = [base] * frames
    if level > 0:
        finer = counts[level - 1]
        raised = (max_visual_tokens - base * frames) // (finer - base)
        for frame in _first(frames, raised, importance):
            scales[frame] = finer
    return scales


def _first(frames: int, count: int, importance: Sequence[float] | None) -> list[int]:
    """Return which frames come first: the most important, or evenly spread ones."""
    if importance is None:
        return [index * frames // count for index in range(count)]
    order = sorted(range(frames), key=lambda frame: -importance[frame])
    return order[:count]

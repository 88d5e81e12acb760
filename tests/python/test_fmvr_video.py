"""Frames of a video share a total of visual tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elastic_models import elastic_llava, pixels, rows
from llava_fa.errors import BudgetError
from llava_fa.fmvr import PyramidShape, frame_scales

SHAPE = PyramidShape((2, 2, 2, 3), 24)


@pytest.mark.parametrize(
    ("total", "scales"),
    [
        (180, [36] * 5),
        (720, [144] * 5),
        (287, [36] * 5),
        (288, [144, 36, 36, 36, 36]),
        (400, [144, 36, 144, 36, 36]),
        (5000, [576] * 5),
        (5, [1] * 5),
    ],
)
def test_five_frames(total: int, scales: list[int]) -> None:
    assert frame_scales(5, total, SHAPE) == scales


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("total", [8, 100, 180, 360, 719, 720])
def test_within_the_total_and_never_wasteful(frames: int, total: int) -> None:
    scales = frame_scales(frames, total, SHAPE)
    assert sum(scales) <= total
    coarsest = min(scales)
    if coarsest < 576:  # raising one more frame would exceed the total
        finer = SHAPE.scales[SHAPE.scales.index(coarsest) - 1]
        assert sum(scales) + finer - coarsest > total


def test_important_frames_come_first() -> None:
    assert frame_scales(5, 400, SHAPE, importance=[0, 1, 0, 0.5, 2]) == [36, 144, 36, 36, 144]


def test_a_model_sees_the_frames_at_their_scales() -> None:
    model = elastic_llava()
    scales = frame_scales(4, 62, model.fmvr.shape)
    assert scales == [9] * 4
    inputs = {**rows(scales), "pixel_values": pixels(4, 3, 48, 48)}
    with torch.no_grad():
        logits = model(**inputs, visual_tokens=scales).logits
    assert logits.shape[1] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5, 4, SHAPE), BudgetError, "below the 5 that 5 frames need"),
        ((0, 4, SHAPE), ValueError, "expected at least 1"),
        ((2, 40, SHAPE, [1.0]), ValueError, "1 numbers for 2 frames"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        frame_scales(*arguments)

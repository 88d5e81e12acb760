"""Training batches: one image and a fixed row of question slots per sequence.

A sequence is ``<bos>``, 144 image tokens, then one slot per question.  Every slot sees the prefix
and its own earlier tokens only, and its positions start right after the image, so that each
question is trained exactly as it is asked alone.  The families of the slots are the same in every
sequence, hence one mask and one row of position ids serve the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .architecture import IMAGE_TOKENS, PATCH_SIZE, PATCHES_PER_SIDE, WORD_ID
from .questions import (
    MIN_SIDE_DISTANCE,
    MIN_SIZE_RATIO,
    Question,
    Scene,
    ask_color,
    ask_count,
    ask_existence,
    ask_more,
    ask_place,
    ask_shape,
    ask_side,
    ask_size,
)
from .scenes import MAX_OBJECTS, MAX_RADIUS, MIN_RADIUS, draw_scene, sample_scene

PREFIX = 1 + IMAGE_TOKENS
"""Tokens before the question: ``<bos>`` and the image."""

IGNORE = -100
"""Label of a position without a target."""

SLOTS = (
    *[("existence", 7)] * 4,
    *[("count", 8)] * 4,
    *[("color", 7)] * 2,
    *[("shape", 8)] * 2,
    *[("side", 13)] * 3,
    *[("size", 13)] * 2,
    *[("more", 8)] * 2,
    ("place", 7),
)
"""Kind and length in tokens, answer included, of every question slot."""

COORDINATE_BINS = 24
"""Bins of the auxiliary coordinate labels (4 pixels each)."""

RADIUS_BINS = 8
"""Bins of the auxiliary radius labels."""


@dataclass(frozen=True)
class Difficulty:
    """What the curriculum varies: objects, noise, and least distances in pair questions."""

    max_objects: int = MAX_OBJECTS
    side_distance: float = MIN_SIDE_DISTANCE
    size_ratio: float = MIN_SIZE_RATIO
    min_radius: float = MIN_RADIUS
    noise_level: float = 1.0

    @classmethod
    def seeing(cls, progress: float) -> Difficulty:
        """Difficulty after a fraction `progress` of the part without questions.

        Shapes are not learned at all from small noisy objects; large clean ones come first.
        """
        left = max(0.0, 1.0 - progress / 0.5)
        return cls(min_radius=MIN_RADIUS + 3.5 * left, noise_level=1.0 - 0.8 * left)

    @classmethod
    def at(cls, progress: float) -> Difficulty:
        """Difficulty after a fraction `progress` of the run: full from 0.3 on."""
        left = max(0.0, 1.0 - progress / 0.3)
        return cls(
            max_objects=MAX_OBJECTS - round(3 * left),
            side_distance=MIN_SIDE_DISTANCE + 14.0 * left,
            size_ratio=MIN_SIZE_RATIO + 0.4 * left,
        )


@dataclass
class Batch:
    """Tensors of one training step; `slots` is the number of question slots.

    Attributes
    ----------
    pixel_values : Tensor, (batch, 3, 96, 96)
        Normalized images.
    input_ids : Tensor of int64, (batch, length)
        Token ids.
    answer_positions : Tensor of int64, (batch, slots)
        Where each answer is predicted; the answer itself follows, and predicts ``<eos>``.
    answers : Tensor of int64, (batch, slots)
        Ids of the answers, `IGNORE` for an empty slot.
    mentions : Tensor of int64, (mentions, 3)
        Rows (sample, position, object or -1): the noun phrases and what they name.
    objects : Tensor of int64, (batch, 6, 5)
        Shape, colour, x bin, y bin and radius bin of every object.
    patches : Tensor of int64, (batch, 144)
        Index of the object that covers most of each patch, -1 for background.
    centres : Tensor of bool, (batch, 144)
        Whether the patch holds the centre of an object.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    answer_positions: torch.Tensor
    answers: torch.Tensor
    mentions: torch.Tensor
    objects: torch.Tensor
    patches: torch.Tensor
    centres: torch.Tensor


def layout() -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and positions that isolate the slots.

    Returns
    -------
    mask : Tensor of bool, (1, 1, length, length)
        True where the row's token may look at the column's.
    positions : Tensor of int64, (1, length)
        Position ids; every slot starts at `PREFIX`.
    """
    lengths = [length for _, length in SLOTS]
    owner = torch.cat(
        [torch.full((PREFIX,), -1), *(torch.full((n,), i) for i, n in enumerate(lengths))]
    )
    positions = torch.cat([torch.arange(PREFIX), *(PREFIX + torch.arange(n) for n in lengths)])
    total = len(owner)
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    visible = causal & ((owner[:, None] == owner[None, :]) | (owner[None, :] == -1))
    return visible[None, None], positions[None]


def _ask(
    kind: str, scene: Scene, rng: np.random.Generator, difficulty: Difficulty
) -> Question | None:
    if kind == "side":
        return ask_side(scene, rng, difficulty.side_distance)
    if kind == "size":
        return ask_size(scene, rng, difficulty.size_ratio)
    samplers = {
        "existence": ask_existence,
        "count": ask_count,
        "color": ask_color,
        "shape": ask_shape,
        "more": ask_more,
        "place": ask_place,
    }
    return samplers[kind](scene, rng)


def _bin(coordinate: float) -> int:
    size = PATCH_SIZE * PATCHES_PER_SIDE / COORDINATE_BINS
    return min(int(coordinate / size), COORDINATE_BINS - 1)


def describe(scene: Scene) -> NDArray[np.int64]:
    """One scene's part of `Batch.objects`."""
    table = np.zeros((MAX_OBJECTS, 5), dtype=np.int64)
    for index, obj in enumerate(scene):
        share = (obj.radius - MIN_RADIUS) / (MAX_RADIUS - MIN_RADIUS)
        radius = min(int(share * RADIUS_BINS), RADIUS_BINS - 1)
        table[index] = obj.shape, obj.color, _bin(obj.x), _bin(obj.y), radius
    return table


def patch_owners(coverage: NDArray[np.float32]) -> NDArray[np.int64]:
    """One scene's part of `Batch.patches`."""
    side, size = PATCHES_PER_SIDE, PATCH_SIZE
    share = coverage.reshape(-1, side, size, side, size).mean(axis=(2, 4)).reshape(-1, IMAGE_TOKENS)
    return np.where(share.max(axis=0) < 0.12, -1, share.argmax(axis=0))


def make_batch(
    rng: np.random.Generator, size: int, difficulty: Difficulty, ask: bool = True
) -> Batch:
    """Generate a batch of `size` images with all their questions, or with none (`ask=False`)."""
    length = PREFIX + sum(n for _, n in SLOTS)
    ids = np.full((size, length), WORD_ID["<pad>"], dtype=np.int64)
    ids[:, 0] = WORD_ID["<bos>"]
    ids[:, 1:PREFIX] = WORD_ID["<image>"]
    where = np.zeros((size, len(SLOTS)), dtype=np.int64)
    answers = np.full((size, len(SLOTS)), IGNORE, dtype=np.int64)
    images = np.empty((size, 96, 96, 3), dtype=np.uint8)
    objects = np.empty((size, MAX_OBJECTS, 5), dtype=np.int64)
    patches = np.empty((size, IMAGE_TOKENS), dtype=np.int64)
    centres = np.zeros((size, IMAGE_TOKENS), dtype=np.bool_)
    mentions: list[tuple[int, int, int]] = []
    for row in range(size):
        scene = sample_scene(rng, 1, difficulty.max_objects, difficulty.min_radius)
        images[row], coverage = draw_scene(scene, rng, difficulty.noise_level)
        objects[row], patches[row] = describe(scene), patch_owners(coverage)
        for obj in scene:
            centres[row, int(obj.y) // PATCH_SIZE * PATCHES_PER_SIDE + int(obj.x) // PATCH_SIZE] = 1
        start = PREFIX
        for slot, (kind, slot_length) in enumerate(SLOTS):
            question = _ask(kind, scene, rng, difficulty) if ask else None
            if question is not None:
                words = [WORD_ID[w] for w in (*question.text.split(), question.answer)]
                end = start + len(words)
                ids[row, start:end] = words
                where[row, slot] = end - 2
                answers[row, slot] = words[-1]
                mentions += [(row, start + offset, index) for offset, index in question.mentions]
            start += slot_length
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0
    return Batch(
        pixel_values=(pixels - 0.5) / 0.25,
        input_ids=torch.from_numpy(ids),
        answer_positions=torch.from_numpy(where),
        answers=torch.from_numpy(answers),
        mentions=torch.tensor(mentions, dtype=torch.int64).reshape(-1, 3),
        objects=torch.from_numpy(objects),
        patches=torch.from_numpy(patches),
        centres=torch.from_numpy(centres),
    )

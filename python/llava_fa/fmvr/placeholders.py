"""Takes surplus image placeholders out of prompts, row by row, and pads the rows anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PADDING = {"attention_mask": 0, "labels": -100, "mm_token_type_ids": 0, "token_type_ids": 0}
"""What rows of these tensors are padded with; prompts are padded with the padding token."""


def shortened(
    inputs: Mapping[str, Any],
    image_token: int,
    full: Sequence[int],
    kept: Sequence[int],
    *,
    pad_token: int = 0,
) -> dict[str, Any]:
    """Return the inputs with as many placeholders per image as are kept.

    Parameters
    ----------
    inputs
        With ``input_ids``, (rows, length), and what else has a value per token, under the names of
        ``PADDING``; everything else is passed on. Rows stay padded on the side they are padded on.
    image_token
        Id of the placeholder.
    full
        Placeholders of every image in the prompts, in the order of rows and places.
    kept
        How many of them stay.
    pad_token
        Id of the padding token.

    Raises
    ------
    ValueError
        The prompts do not hold the placeholders of the images.
    """
    ids = torch.as_tensor(inputs["input_ids"])
    keep = _kept_places(ids, image_token, full, kept)
    given = inputs.get("attention_mask")
    real = torch.ones_like(ids) if given is None else torch.as_tensor(given)
    left = bool((real[:, 0] == 0).any())
    rows = [torch.nonzero(keep[row] & (real[row] != 0))[:, 0] for row in range(len(ids))]
    length = max(len(row) for row in rows)
    fills = {"input_ids": pad_token, **PADDING}
    found = dict(inputs)
    if given is None and len({len(row) for row in rows}) > 1:
        found["attention_mask"] = real
    for name, fill in fills.items():
        if found.get(name) is not None:
            found[name] = _gathered(torch.as_tensor(found[name]), rows, length, fill, left=left)
    return found


def _kept_places(ids: Tensor, image_token: int, full: Sequence[int], kept: Sequence[int]) -> Tensor:
    """Return which tokens stay, as ``ids``: of every image's placeholders the first ones."""
    places = torch.nonzero(ids == image_token)
    if len(places) != sum(full):
        raise ValueError(
            f"the prompts hold {len(places)} image placeholders, expected {sum(full)} for "
            f"{len(full)} images at full scale"
        )
    keep = torch.ones_like(ids, dtype=torch.bool)
    for image, surplus in zip(torch.split(places, list(full)), kept, strict=True):
        row, column = image[surplus:].unbind(1)
        keep[row, column] = False
    return keep


def _gathered(
    values: Tensor, rows: Sequence[Tensor], length: int, fill: int, *, left: bool
) -> Tensor:
    out = values.new_full((len(rows), length), fill)
    for row, places in enumerate(rows):
        start = length - len(places) if left else 0
        out[row, start : start + len(places)] = values[row, places]
    return out

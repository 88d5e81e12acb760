"""Chooses the finest scale whose prompt stays within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cost import kv_cache_bytes, prefill_flops
from ..errors import BudgetError
from ..sizes import parse_size
from .layouts import ImageLayout, MergedLayout, layout_of


@dataclass(frozen=True)
class Budget:
    """Limits for one prompt.

    Parameters
    ----------
    max_prefill_tflops
        10¹² FLOPs of the language model's prefill (see :func:`llava_fa.cost.prefill_flops`); what
        the vision tower takes does not depend on the scale.
    max_kv_bytes
        Bytes of the KV cache of the prompt, in the type that the configuration states.
    """

    max_prefill_tflops: float | None = None
    max_kv_bytes: int | None = None

    @classmethod
    def of(cls, max_prefill_tflops: float | None, max_kv_bytes: int | str | None) -> Budget | None:
        """Return the budget, sizes as bytes or text like ``"40MB"``; None without limits."""
        if max_prefill_tflops is None and max_kv_bytes is None:
            return None
        limit = None if max_kv_bytes is None else parse_size("max_kv_bytes", max_kv_bytes)
        return cls(max_prefill_tflops, limit)

    def excess(self, config: Any, tokens: int) -> tuple[str, float] | None:
        """Return which limit a prompt of so many tokens exceeds, and what it needs of it."""
        tflops = prefill_flops(config, tokens) / 1e12
        if self.max_prefill_tflops is not None and tflops > self.max_prefill_tflops:
            return "max_prefill_tflops", tflops
        nbytes = kv_cache_bytes(config, tokens, _bytes_per_value(config))
        if self.max_kv_bytes is not None and nbytes > self.max_kv_bytes:
            return "max_kv_bytes", nbytes
        return None


def scale_within(budget: Budget, config: Any, inputs: Mapping[str, Any]) -> int:
    """Return the finest scale at which every prompt of a batch stays within a budget.

    Parameters
    ----------
    budget
        For each prompt.
    config
        Of a model with FMVR.
    inputs
        Of the model, with the placeholders of full scale.

    Raises
    ------
    BudgetError
        Even the coarsest scale exceeds it; ``minimum`` is what that needs, in the limit's unit.
    """
    layout = layout_of(config)
    images, full = layout.images(inputs), layout.full(inputs)
    texts, owners = _rows(inputs, config.image_token_id, full)
    exceeded = None
    for scale in _candidates(layout, inputs):
        counts = layout.reduced(inputs, [scale] * images)
        needed = max(
            text + sum(count for count, owner in zip(counts, owners, strict=True) if owner == row)
            for row, text in enumerate(texts)
        )
        exceeded = budget.excess(config, needed)
        if exceeded is None:
            return scale
    assert exceeded is not None  # there is a scale
    name, minimum = exceeded
    raise BudgetError(
        f"{name} is {getattr(budget, name):g}, below the {minimum:g} that the prompt needs with "
        "the fewest visual tokens; raise it, or shorten the text",
        minimum,
    )


def _candidates(layout: ImageLayout, inputs: Mapping[str, Any]) -> list[int]:
    """Return scales that all images have, the finest first."""
    if not isinstance(layout, MergedLayout):
        return list(layout.shape.scales)
    counts = [
        layout.shape.token_counts((height, width)) for _, height, width in layout.grids(inputs)
    ]
    coarsest = max(levels[-1] for levels in counts)
    found = {count for levels in counts for count in levels if count >= coarsest}
    return sorted(found, reverse=True)


def _rows(
    inputs: Mapping[str, Any], image_token: int, full: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the tokens of text of every row, and the row of every image."""
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    real = torch.ones_like(ids) if mask is None else mask
    texts = ((real != 0) & (ids != image_token)).sum(dim=1).tolist()
    places = torch.nonzero(ids == image_token)[:, 0]
    owners = [int(rows[0]) for rows in torch.split(places, list(full))]
    return texts, owners


def _bytes_per_value(config: Any) -> int:
    known = isinstance(config.dtype, torch.dtype)
    return int((config.dtype if known else torch.get_default_dtype()).itemsize)

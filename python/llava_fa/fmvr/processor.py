"""A processor that writes as many image placeholders as the chosen scale needs."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch

from .budget import Budget, scale_within
from .layouts import layout_of, scales_of
from .placeholders import shortened


def elastic_processor(processor: Any, config: Any) -> Any:
    """Return a processor like the given one that takes ``visual_tokens``, or a budget.

    Its call takes beside the given one's arguments ``visual_tokens``, a scale for all images or one
    for each, or ``max_prefill_tflops`` or ``max_kv_bytes``, limits for every prompt of the batch;
    the finest scale within them is chosen. It gives beside the given one's results
    ``visual_tokens``, (images,) int64, which the model wants. Without any of them, or without
    images, nothing changes. It is saved like the given one.

    Parameters
    ----------
    processor
        Of a LLaVA-1.5, LLaVA-NeXT or Qwen2.5-VL model.
    config
        The configuration of the model with FMVR.

    Raises
    ------
    ValueError
        In the call: the grid has no such scale, scales are not one per image, a scale and a budget
        are both given, or tensors were not asked for (``return_tensors="pt"``).
    BudgetError
        In the call: even the coarsest scale is above the budget.
    """
    layout_of(config)  # refuses a configuration without FMVR
    made = copy.copy(processor)
    plain = type(processor)
    # The same name, so that the saved processor is what transformers looks for.
    made.__class__ = type(plain.__name__, (_Elastic, plain), {"_fmvr_config": config})
    return made


class _Elastic:
    """The call with a scale; mixed into the class of a processor."""

    _fmvr_config: Any
    tokenizer: Any

    def __call__(
        self,
        *arguments: Any,
        visual_tokens: Any = None,
        max_prefill_tflops: float | None = None,
        max_kv_bytes: int | str | None = None,
        **options: Any,
    ) -> Any:
        """See :func:`elastic_processor`."""
        found = cast("Any", super()).__call__(*arguments, **options)
        budget = Budget.of(max_prefill_tflops, max_kv_bytes)
        if visual_tokens is None and budget is None:
            return found
        if visual_tokens is not None and budget is not None:
            raise ValueError("give visual_tokens or a budget, not both")
        if not isinstance(found.get("input_ids"), torch.Tensor):
            raise ValueError("a scale needs tensors: return_tensors='pt'")
        config, layout = self._fmvr_config, layout_of(self._fmvr_config)
        images = layout.images(found)
        if images == 0:
            return found
        if budget is not None:
            visual_tokens = scale_within(budget, config, found)
        scales = scales_of(visual_tokens, images)
        short = shortened(
            found,
            config.image_token_id,
            layout.full(found),
            layout.reduced(found, scales),
            pad_token=self.tokenizer.pad_token_id or 0,
        )
        found.update(short)
        found["visual_tokens"] = torch.tensor(scales)
        return found

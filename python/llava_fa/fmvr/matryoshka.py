"""The training loss over several scales at once (Matryoshka): one pass of the vision tower.

``L = mean over scales s of (CE_s + λ · KL(p_full ‖ p_s))``: CE is the cross-entropy of the labelled
tokens, and the optional divergence distills the distribution with all visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from .layouts import scales_of, split_images
from .placeholders import shortened

IGNORED = -100
"""The label of tokens that are not learned."""


@dataclass(frozen=True)
class Matryoshka:
    """What to train at once.

    Parameters
    ----------
    scales
        Numbers of visual tokens, as ``visual_tokens`` names them; None is full scale.
    distillation
        λ, the weight of the divergence from the distribution at full scale; 0 for none.

    Raises
    ------
    ValueError
        There are no scales, or the weight is negative.
    """

    scales: tuple[int | None, ...]
    distillation: float = 0.0

    def __post_init__(self) -> None:
        """Validate."""
        if not self.scales:
            raise ValueError("expected at least one scale to train at, got none")
        if not self.distillation >= 0:
            raise ValueError(f"distillation is {self.distillation}, expected 0 or more")


def matryoshka_output(
    model: Any,
    run: Callable[..., Any],
    inputs: Mapping[str, Any],
    settings: Matryoshka,
) -> Any:
    """Return the output at full scale with the loss over all scales as its loss.

    Parameters
    ----------
    model
        An outer model with FMVR.
    run
        Its ``forward`` without FMVR.
    inputs
        With labels, and a prompt with the placeholders of full scale.
    settings
        See :class:`Matryoshka`.

    Raises
    ------
    ValueError
        There are no labels.
    """
    if inputs.get("labels") is None:
        raise ValueError("the loss over scales needs labels")
    passes = _Passes(model, run, inputs)
    full = passes.at(None) if None in settings.scales or settings.distillation > 0 else None
    losses = []
    first = full
    for scale in settings.scales:
        found = full if full is not None and scale is None else passes.at(scale)
        loss = found.output.loss
        if settings.distillation > 0 and full is not None and scale is not None:
            own = divergence(full, found, inputs.get("num_items_in_batch"))
            loss = loss + settings.distillation * own
        losses.append(loss)
        first = first or found
    assert first is not None  # there is a scale
    first.output.loss = torch.stack(losses).mean()
    return first.output


@dataclass(frozen=True)
class Pass:
    """What the model gave at one scale: logits of (rows, length, words), and labels."""

    output: Any
    labels: Tensor

    def answers(self) -> Tensor:
        """Return the logits that predict labelled tokens, (tokens, words), rows in order."""
        return cast("Tensor", self.output.logits[:, :-1][self.labels[:, 1:] != IGNORED])


def divergence(full: Pass, found: Pass, count: Tensor | int | None = None) -> Tensor:
    """Return KL(p_full ‖ p_found) in nats, the mean over labelled tokens.

    With ``count`` the sum is divided by it, as transformers divides the cross-entropy where a step
    takes several passes.
    """
    target = torch.log_softmax(full.answers().detach().float(), dim=-1)
    own = torch.log_softmax(found.answers().float(), dim=-1)
    total = functional.kl_div(own, target, reduction="sum", log_target=True)
    return total / (max(len(own), 1) if count is None else count)


class _Passes:
    """Runs the model at any scale; the images are encoded once."""

    def __init__(self, model: Any, run: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        self._model, self._run = model, run
        self._images, self._text = split_images(inputs)
        self._count = model.model.layout.images(inputs)
        if self._count:
            self._encoded, self._grids = model.model.encode_images(**self._images)

    def at(self, scale: int | None) -> Pass:
        """Return the output at a scale; without images all are the same."""
        if not self._count:
            return Pass(self._run(**self._text), self._text["labels"])
        text, tokens = self._text, self._encoded.pooler_output
        if scale is not None:
            inner = self._model.model
            tokens = inner.at_scales(self._grids, scales_of(scale, self._count), self._images)
            text = shortened(
                text,
                self._model.config.image_token_id,
                inner.layout.full(self._images),
                [len(part) for part in tokens],
            )
        placed = self._model.image_positions(text, self._images, scale)
        encoded = type(self._encoded)(pooler_output=tokens)
        output = self._run(**text, **placed, mm_encoder_outputs={"image": encoded})
        return Pass(output, text["labels"])

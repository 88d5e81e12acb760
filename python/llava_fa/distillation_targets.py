"""What a refined model is trained towards: the dense model's token distributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .dense_model import on_device_of
from .errors import CheckpointError, NonFiniteError

POSITIONS = ("text", "last")
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(frozen=True)
class Example:
    """Inputs of the model and the dense model's answer to them.

    Parameters
    ----------
    inputs
        Keyword arguments of ``forward``.
    positions
        Where the distributions are compared, (batch, length) bool.
    log_probabilities
        The dense model's at these positions, (count, vocabulary) float32.
    """

    inputs: dict[str, Any]
    positions: Tensor
    log_probabilities: Tensor

    @property
    def count(self) -> int:
        """Number of positions compared."""
        return len(self.log_probabilities)

    def divergence(self, model: Any) -> Tensor:
        """Return the sum over the positions of KL(dense ‖ model), in nats."""
        answers = _log_probabilities(model, self.inputs, self.positions)
        if answers.shape != self.log_probabilities.shape:
            raise CheckpointError(
                f"the dense model answers with {self.log_probabilities.shape[1]} tokens, the "
                f"packed one with {answers.shape[1]}; give the model that was compressed"
            )
        expected = self.log_probabilities
        return (expected.exp() * (expected - answers)).sum()


@torch.no_grad()
def examples_of(
    model: Any,
    inputs: Iterable[Mapping[str, Any]],
    positions: str,
    done: Any = lambda: None,
) -> list[Example]:
    """Run the dense model over all examples.

    Parameters
    ----------
    model
        The dense model.
    inputs
        Keyword arguments of its ``forward``, one mapping per example.
    positions
        ``"text"``: at every token that is neither padding nor an image's. ``"last"``: at the last
        of these, where an answer begins. Where an example has ``labels``, those decide.
    done
        Called after every example.

    Raises
    ------
    CheckpointError
        An example has no position to compare, or the model no logits.
    NonFiniteError
        The dense model's logits hold NaN or infinity.
    """
    examples = []
    for number, given in enumerate(inputs, 1):
        if "input_ids" not in given:
            raise CheckpointError(
                f"calibration example {number} has {sorted(given)}, expected input_ids among them"
            )
        placed = on_device_of(model, {k: value for k, value in given.items() if k != "labels"})
        mask = _positions(given, model.config, positions)
        if not bool(mask.any()):
            raise CheckpointError(
                f"calibration example {number} has no token to compare: all are padding, images "
                "or unlabelled"
            )
        answers = _log_probabilities(model, placed, mask)
        if not bool(torch.isfinite(answers).all()):
            raise NonFiniteError(
                f"calibration example {number}: the dense model's logits hold NaN or infinity; "
                "check the example, or choose a wider dtype"
            )
        examples.append(Example(placed, mask, answers))
        done()
    return examples


def _positions(inputs: Mapping[str, Any], config: Any, rule: str) -> Tensor:
    """Return where the distribution of the next token is compared, (batch, length) bool."""
    tokens: Tensor = inputs["input_ids"]
    labels = inputs.get("labels")
    if labels is not None:  # position p predicts token p + 1
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[:, :-1] = labels[:, 1:] != -100
        return mask
    attention = inputs.get("attention_mask")
    mask = torch.ones_like(tokens, dtype=torch.bool)
    if attention is not None and attention.shape == tokens.shape:
        mask = attention.bool()
    for name in _IMAGE_TOKENS:
        image = getattr(config, name, None)
        if image is not None:
            mask = mask & (tokens != image)
    if rule == "last":
        mask = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return mask


def _log_probabilities(model: Any, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
    logits = getattr(model(**inputs, use_cache=False), "logits", None)
    if logits is None or logits.shape[:2] != positions.shape:
        raise CheckpointError(
            f"{type(model).__name__} gives no logits per input token, which refinement compares"
        )
    return torch.log_softmax(logits[positions].float(), -1)

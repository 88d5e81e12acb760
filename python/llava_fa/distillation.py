"""Trains the changes of packed matrices towards the dense model's distributions."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .distillation_targets import POSITIONS, Example
from .errors import NonFiniteError
from .trainable_matrix import TrainableMatrix

_LOG = logging.getLogger(__name__)

_WARM_UP = 0.05  # share of the steps; Adam's first steps have the full length in every coordinate
_EVALUATIONS = 10
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class RefinementOptions:
    """How to train.

    Parameters
    ----------
    steps
        Optimizer steps.
    learning_rate
        Of AdamW, on logarithms of scales and on factors in units of their size; after a short
        warm-up it falls to zero along a cosine.
    batch_size
        Examples per step.
    weight_decay
        Of AdamW; draws every value back to where it started.
    held_out
        Share of the examples, the last ones, that choose the best step and are not trained on.
    positions
        Where distributions are compared: see :func:`llava_fa.distillation_targets.examples_of`.
    seed
        Of the order of the examples.

    Raises
    ------
    ValueError
        If an option lies outside its range.
    """

    steps: int = 100
    learning_rate: float = 1e-3
    batch_size: int = 8
    weight_decay: float = 0.01
    held_out: float = 0.25
    positions: str = "text"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate every field."""
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {POSITIONS}, got {self.positions!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What training did: held-out divergence by step, in nats per position; 0 is the start."""

    held_out: dict[int, float]
    best_step: int

    @property
    def before(self) -> float:
        """Held-out divergence at the start."""
        return self.held_out[0]

    @property
    def after(self) -> float:
        """Held-out divergence of the step that was kept."""
        return self.held_out[self.best_step]


def split(
    examples: Sequence[Example], options: RefinementOptions
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Divide into examples to train on and held-out ones.

    The last ones are held out: neighbours often share an image, and an image on both sides would
    hide that only this image was learned.
    """
    count = min(max(1, round(len(examples) * options.held_out)), len(examples) - 1)
    return examples[:-count], examples[-count:]


def train(
    model: Any,
    matrices: Mapping[str, TrainableMatrix],
    examples: Sequence[Example],
    options: RefinementOptions,
    done: Callable[[float], object] = lambda held_out: None,
) -> Outcome:
    """Train the matrices' changes and leave them as they were at the best step.

    Parameters
    ----------
    model
        The packed model over these matrices (see :func:`llava_fa.trainable_linear.make_trainable`).
    matrices
        By module name.
    examples
        At least two.
    options
        See :class:`RefinementOptions`.
    done
        Told the last held-out divergence after every step.

    Raises
    ------
    NonFiniteError
        The divergence became NaN or infinite.
    """
    training, held_out = split(examples, options)
    changes = [change for matrix in matrices.values() for change in matrix.changes.values()]
    optimizer = torch.optim.AdamW(
        changes, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_share(step, options.steps)
    )
    found = {0: evaluate(model, held_out)}
    best, kept = 0, _copies(changes)
    batches = _batches(training, options)
    for step in range(1, options.steps + 1):
        _accumulate(model, next(batches), step)
        nn.utils.clip_grad_norm_(changes, _LARGEST_GRADIENT)
        optimizer.step()
        _check_changes(changes, step)
        schedule.step()
        optimizer.zero_grad()
        if step % max(1, options.steps // _EVALUATIONS) == 0 or step == options.steps:
            found[step] = evaluate(model, held_out, step)
            _LOG.info("step %d: held-out KL %.6g, at the start %.6g", step, found[step], found[0])
            if found[step] < found[best]:
                best, kept = step, _copies(changes)
        done(list(found.values())[-1])
    with torch.no_grad():
        for change, value in zip(changes, kept, strict=True):
            change.copy_(value)
    return Outcome(found, best)


@torch.no_grad()
def evaluate(model: Any, examples: Sequence[Example], step: int = 0) -> float:
    """Return the mean divergence per position over the examples, in nats."""
    total = math.fsum(float(example.divergence(model)) for example in examples)
    return _checked(total, step) / sum(example.count for example in examples)


def _accumulate(model: Any, batch: Sequence[Example], step: int) -> None:
    """Add up the gradients of the mean divergence over a batch."""
    count = sum(example.count for example in batch)
    for example in batch:
        loss = example.divergence(model) / count
        _checked(float(loss.detach()), step)
        torch.autograd.backward(loss)


def _checked(divergence: float, step: int) -> float:
    if not math.isfinite(divergence):
        remedy = (
            "lower the learning rate (--learning-rate)"
            if step
            else "the packed model gives NaN or infinity on these examples: check it with llava-fa "
            "verify, or choose a wider dtype"
        )
        raise NonFiniteError(f"the divergence is {divergence} at step {step}; {remedy}")
    return divergence


def _check_changes(changes: Sequence[Tensor], step: int) -> None:
    if not all(bool(torch.isfinite(change).all()) for change in changes):
        raise NonFiniteError(
            f"training diverged: a scale or factor is not finite after step {step}; lower the "
            "learning rate (--learning-rate)"
        )


def _learning_rate_share(step: int, steps: int) -> float:
    warm_up = max(1, round(_WARM_UP * steps))
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _batches(examples: Sequence[Example], options: RefinementOptions) -> Iterator[list[Example]]:
    """Yield batches without end, in an order that the seed decides; no example twice in a round."""
    generator = torch.Generator().manual_seed(options.seed)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for begin in range(0, len(order), options.batch_size):
            yield [examples[index] for index in order[begin : begin + options.batch_size]]


def _copies(changes: Sequence[Tensor]) -> list[Tensor]:
    return [change.detach().clone() for change in changes]

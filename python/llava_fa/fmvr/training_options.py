"""How a model with FMVR is trained, and what a run reports."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

TRAINED = ("pyramid", "projector", "language", "all")
"""What learns: the pyramid alone; the projector too; the language model too; all."""


@dataclass(frozen=True)
class FmvrTraining:
    """How to train.

    Parameters
    ----------
    train
        One of ``TRAINED``.
    scales
        Numbers of visual tokens, the full one among them if it is to be trained; None for all of a
        square grid. A model without FMVR gets it with these. For grids of any shape they are
        limits, and the full scale is trained too.
    variant
        Of the pyramid, if the model has none yet.
    distillation
        Weight of the divergence from the answers with all visual tokens; 0 for none.
    epochs, steps
        Passes over the examples, or optimizer steps if given.
    batch_size, accumulation
        Examples per device and pass, and passes per step.
    learning_rate, pyramid_learning_rate
        Of AdamW, for the model and for the pyramid; after a warm-up of 3 % along a cosine to 0.
    gradient_checkpointing
        Compute activations twice instead of keeping them.
    dtype
        That the model is trained and saved in: ``"float32"`` or ``"bfloat16"``.
    save_steps
        Steps between states that an interrupted run continues from.
    seed
        Of the order of the examples.

    Raises
    ------
    ValueError
        An option lies outside its range.
    """

    train: str = "language"
    scales: tuple[int, ...] | None = None
    variant: str = "both"
    distillation: float = 0.0
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 2e-5
    pyramid_learning_rate: float = 1e-3
    gradient_checkpointing: bool = False
    dtype: str = "float32"
    save_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate every field."""
        if self.train not in TRAINED:
            raise ValueError(f"train is {self.train!r}, expected one of {TRAINED}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")
        for name in ("batch_size", "accumulation", "save_steps", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        for name in ("learning_rate", "pyramid_learning_rate", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")
        if not 0 <= self.distillation < math.inf:
            raise ValueError(f"distillation is {self.distillation}, expected 0 or more")


@dataclass(frozen=True)
class TrainingReport:
    """What a run did: steps, mean losses of its first and last logged steps, and sizes."""

    steps: int
    first_loss: float
    last_loss: float
    scales: tuple[int | None, ...]
    trained_values: int
    examples: int

    def to_json(self) -> str:
        """Return the figures as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def summary(self) -> str:
        """Return the figures as the command line shows them."""
        return (
            f"{self.steps} steps on {self.examples} examples at {names_of(self.scales)} visual "
            f"tokens: loss "
            f"{self.first_loss:.4f} -> {self.last_loss:.4f}, {self.trained_values} values trained"
        )


def names_of(scales: tuple[int | None, ...]) -> str:
    """Return scales as people read them; None is the full one."""
    return ", ".join("full" if scale is None else str(scale) for scale in scales)

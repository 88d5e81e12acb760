"""Trains a model with FMVR at all its scales at once, with transformers' ``Trainer``."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..capture import load_processor
from ..errors import CheckpointError, LlavaFaError, NonFiniteError
from ..loading import load_model
from .attach import attach_fmvr
from .conversations import Conversations, collated
from .layouts import layout_of
from .matryoshka import Matryoshka
from .training_options import TRAINED, FmvrTraining, TrainingReport, names_of

CHECKPOINTS = "checkpoints"
"""Folder in the output that a run which was stopped continues from; removed at the end."""


_CARD = """\
# A model with elastic visual tokens

Trained with llava-fa at these numbers of visual tokens: {scales}. Import `llava_fa` **before**
loading: transformers alone does not know the model type.

```python
import llava_fa
from transformers import AutoModelForImageTextToText, AutoProcessor
from llava_fa.fmvr import elastic_processor

model = AutoModelForImageTextToText.from_pretrained("THIS_FOLDER", dtype="auto")
processor = elastic_processor(AutoProcessor.from_pretrained("THIS_FOLDER"), model.config)
```
"""
"""The model card of the output."""


def train_fmvr(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: str | os.PathLike[str],
    images: str | os.PathLike[str],
    options: FmvrTraining | None = None,
    *,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainingReport:
    """Train a checkpoint at several numbers of visual tokens and save it with its pyramid.

    Several devices are used as ``accelerate launch`` says.

    Parameters
    ----------
    source
        Folder or hub id of a dense LLaVA-1.5, LLaVA-NeXT or Qwen2.5-VL model, with or without FMVR.
    output
        Folder to write: empty, or with the state of an interrupted run, which is continued.
    data, images
        See :class:`Conversations`.
    options
        ``FmvrTraining()`` if None.
    resume
        Continue an interrupted run; if False, start it anew.
    overwrite
        Replace a checkpoint in ``output``.
    progress
        Show a progress bar and the losses.

    Raises
    ------
    CheckpointError
        The data or the output cannot be used.
    LlavaFaError
        The package accelerate, which ``Trainer`` needs, is not installed.
    NonFiniteError
        The loss became NaN or infinite.
    ValueError
        There is nothing to train, or the grid has no such scales.
    """
    options = options or FmvrTraining()
    folder = Path(output)
    if importlib.util.find_spec("accelerate") is None:
        raise LlavaFaError("training needs the package accelerate: pip install accelerate")
    _check_output(folder, overwrite=overwrite)
    # Packed layers have no weights to train.
    model = load_model(source, runtime="dense", dtype=getattr(torch, options.dtype))
    if not hasattr(model, "fmvr"):
        square = "qwen" not in model.config.model_type
        attach_fmvr(model, options.scales if square else None, variant=options.variant)
    trained = freeze(model, options.train)
    processor = load_processor(source)
    examples = Conversations(data, images, processor, model.config)
    settings = Matryoshka(scales_to_train(model, options.scales), options.distillation)
    trainer = _trainer(model, processor, examples, settings, options, folder, progress)
    last = _last_state(folder) if resume else None
    if not resume and trainer.is_world_process_zero():
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "README.md").write_text(_CARD.format(scales=names_of(settings.scales)))
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return TrainingReport(
        steps=trainer.state.global_step,
        first_loss=losses[0],
        last_loss=losses[-1],
        scales=settings.scales,
        trained_values=sum(parameter.numel() for parameter in trained),
        examples=len(examples),
    )


def freeze(model: Any, train: str) -> list[torch.nn.Parameter]:
    """Let only some parts of a model with FMVR learn; return their parameters.

    Raises
    ------
    ValueError
        No parameter would learn.
    """
    inner = model.model
    parts: dict[str, Sequence[Any]] = {
        "pyramid": [model.fmvr],
        "projector": [_projector(inner)],
        "language": [inner.language_model, model.lm_head],
        "all": [model],
    }
    model.requires_grad_(False)
    for name in TRAINED[: TRAINED.index(train) + 1]:
        for part in parts[name]:
            part.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(f"train is {train!r}, but the pyramid's variant has nothing to learn")
    return trained


def scales_to_train(model: Any, scales: Sequence[int] | None) -> tuple[int | None, ...]:
    """Return the scales of the loss, None for the full one, the full one first.

    Raises
    ------
    ValueError
        The grid has no such scale, or grids have any shape and no limits were given.
    """
    shape = layout_of(model.config).shape
    if shape.side is None:
        if scales is None:
            raise ValueError("grids of this model have any shape: give the limits to train at")
        return (None, *sorted(scales, reverse=True))
    chosen = sorted(scales if scales is not None else shape.scales, reverse=True)
    for scale in chosen:
        shape.level_of(scale)
    full = shape.scales[0]
    return tuple(None if scale == full else scale for scale in chosen)


def _projector(inner: Any) -> Any:
    projector = getattr(inner, "multi_modal_projector", None)
    return inner.visual.merger if projector is None else projector


def _trainer(
    model: Any,
    processor: Any,
    examples: Conversations,
    settings: Matryoshka,
    options: FmvrTraining,
    folder: Path,
    progress: bool,
) -> Any:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class MatryoshkaTrainer(Trainer):
        """Asks the model for its loss over all scales."""

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any
        ) -> Any:
            inputs = {**inputs, "matryoshka": settings}
            found = super().compute_loss(model, inputs, *arguments, **options)
            loss = found[0] if isinstance(found, tuple) else found
            if not bool(torch.isfinite(loss)):
                raise NonFiniteError(
                    f"the loss is {float(loss)} at step {self.state.global_step}; lower the "
                    "learning rates (--learning-rate, --pyramid-learning-rate)"
                )
            return found

    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=options.epochs,
        max_steps=options.steps or -1,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_steps=options.save_steps,
        save_total_limit=1,
        logging_steps=1 if options.steps and options.steps < 100 else 10,
        disable_tqdm=True,  # it would write losses to stdout; see `_bar`
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=options.seed,
    )
    pad = processor.tokenizer.pad_token_id or 0
    trainer = MatryoshkaTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=partial(collated, pad_token=pad),
        optimizers=(_optimizer(model, options), None),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_bar(progress))
    return trainer


def _bar(visible: bool) -> Any:
    """Return a callback that shows steps, time left and loss on stderr, on the first process."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        """The bar."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            hidden = not (visible and state.is_world_process_zero)
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                disable=hidden,
            )

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.bar.set_postfix(loss=logs["loss"])

        def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.bar.close()

    return Bar()


def _optimizer(model: Any, options: FmvrTraining) -> torch.optim.Optimizer:
    own = {id(parameter) for parameter in model.fmvr.parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in learning if (id(parameter) in own) == pyramid],
            "lr": options.pyramid_learning_rate if pyramid else options.learning_rate,
        }
        for pyramid in (False, True)
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def _check_output(folder: Path, *, overwrite: bool) -> None:
    if folder.is_file():
        raise CheckpointError(f"{folder}: expected a folder to write, found a file")
    others = [path.name for path in folder.glob("*") if path.name != CHECKPOINTS]
    if others and not overwrite:
        raise CheckpointError(
            f"{folder} is not empty (it holds {others[0]}); choose another folder, or replace the "
            "checkpoint in it with --overwrite"
        )


def _last_state(folder: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    states = folder / CHECKPOINTS
    return get_last_checkpoint(str(states)) if states.is_dir() else None

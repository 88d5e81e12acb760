"""Refines a compressed checkpoint by distillation: check, run the dense model, train, write.

Optional, and the only part of the library that trains. The output has the same tensors as the
input, with the same codes; scales and low-rank factors have other values.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .calibration_run import CalibrationInput
from .capture import CalibrationData
from .config import CompressionConfig
from .dense_model import load_dense_model
from .dense_weights import DenseWeights
from .distillation import Outcome, RefinementOptions, split, train
from .distillation_targets import Example, examples_of
from .errors import CheckpointError
from .matrix import CompressedMatrix
from .model_card import model_card
from .output import (
    check_empty,
    check_places,
    clear_output,
    earlier_requests,
    manifest_of,
    publish,
)
from .packed_checkpoint import PackedCheckpoint
from .partial import Part, PartialRun, build_shards
from .report import CompressionReport, TensorRow
from .request import describe_request
from .shards import Checkpoint
from .trainable_linear import make_trainable
from .trainable_matrix import TrainableMatrix
from .verify import inspect_checkpoint

DTYPES = ("float32", "bfloat16")
_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class RefinementReport:
    """The result of :func:`refine_checkpoint`.

    Parameters
    ----------
    compression
        Sizes and errors of the output.
    options, outcome
        How it was trained, and what that did to the held-out divergence.
    examples, held_out
        Number of examples trained on, and of those that chose the step.
    trained_values
        Number of scales and factor entries trained.
    """

    compression: CompressionReport
    options: RefinementOptions
    outcome: Outcome
    examples: int
    held_out: int
    trained_values: int

    @property
    def improved(self) -> bool:
        """Whether any step was better than the start; if not, the output is the input."""
        return self.outcome.best_step > 0

    def summary(self) -> str:
        """Return the two lines that the command line prints."""
        before, after = self.outcome.before, self.outcome.after
        verdict = (
            f"kept step {self.outcome.best_step} of {self.options.steps}"
            if self.improved
            else "no step was better, the output has the values of the input"
        )
        return (
            f"trained {self.trained_values} scales and factor entries on {self.examples} examples\n"
            f"KL divergence from the dense model on {self.held_out} held-out examples: "
            f"{before:.4g} -> {after:.4g} nats per token ({verdict})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "options": self.options.to_dict(),
            "examples": self.examples,
            "held_out_examples": self.held_out,
            "trained_values": self.trained_values,
            "held_out_kl": {str(step): kl for step, kl in self.outcome.held_out.items()},
            "best_step": self.outcome.best_step,
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` and the report of the output as text."""
        return json.dumps({**self.to_dict(), "report": self.compression.to_dict()}, indent=2)


def refine_checkpoint(
    packed: str | os.PathLike[str],
    dense: str | os.PathLike[str],
    output: str | os.PathLike[str],
    calibration_data: CalibrationInput,
    options: RefinementOptions | None = None,
    *,
    calibration_samples: int = 128,
    dtype: str = "float32",
    overwrite: bool = False,
    progress: bool = True,
) -> RefinementReport:
    """Train the scales and factors of a compressed checkpoint towards the dense model's answers.

    Parameters
    ----------
    packed
        Folder that :func:`compress_checkpoint` wrote.
    dense
        The checkpoint it was made from: a folder or a hub id.
    output
        Folder to write; must be empty unless ``overwrite``. Nothing is written before training has
        ended.
    calibration_data
        See :class:`llava_fa.capture.CalibrationData`; at least two examples. The last quarter (see
        ``options.held_out``) chooses the best step, the others are trained on. The output is never
        worse on them than the input.
    options
        ``RefinementOptions()`` if None.
    calibration_samples
        At most so many examples are used.
    dtype
        Type that both models compute in: ``"float32"``, or ``"bfloat16"`` for half the memory.
    overwrite
        Replace a checkpoint in ``output``. Deletes only files that this function would write.
    progress
        Show progress bars on stderr.

    Raises
    ------
    CheckpointError
        A folder cannot be used, or ``packed`` is not ``dense``, compressed.
    NonFiniteError
        The divergence became NaN or infinite.

    Examples
    --------
    >>> from llava_fa import refine_checkpoint
    >>> report = refine_checkpoint("small", "dense", "refined", "qa.jsonl")  # doctest: +SKIP
    >>> print(report.summary())  # doctest: +SKIP
    """
    options, folder = options or RefinementOptions(), Path(output)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    start = PackedCheckpoint.open(packed)
    weights = _dense_weights(start, dense)
    for source in (start.checkpoint, weights.checkpoint):
        check_places(source.folder, folder)
    data = CalibrationData(calibration_data, calibration_samples)
    if len(data) < 2:
        raise CheckpointError(
            "refinement needs at least 2 calibration examples, one of them held out; got 1"
        )
    run = PartialRun(folder)
    with run.held():
        if not overwrite:
            check_empty(folder)
        examples = _examples(weights.checkpoint, start.checkpoint, data, options, dtype, progress)
        matrices = {name: TrainableMatrix(start.read_matrix(name)) for name in start.specs}
        outcome = _train(start.checkpoint, matrices, examples, options, dtype, progress)
        training, held_out = split(examples, options)
        report = RefinementReport(
            CompressionReport(()),
            options,
            outcome,
            len(training),
            len(held_out),
            sum(change.numel() for m in matrices.values() for change in m.changes.values()),
        )
        if not report.improved:
            warnings.warn(
                "no step lowered the divergence on the held-out examples; the output has the "
                "values of the input (give more examples, or a lower learning rate)",
                stacklevel=2,
            )
        if overwrite:
            clear_output(start.checkpoint.folder, folder)
        return _write(run, start, weights, matrices, report, data.fingerprint(), progress)


def _dense_weights(packed: PackedCheckpoint, dense: str | os.PathLike[str]) -> DenseWeights:
    """Open the dense checkpoint and check that the packed one can come from it."""
    checkpoint = Checkpoint.open(dense)
    if "quantization_config" in checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.folder}: is quantized itself; give the dense checkpoint that "
            f"{packed.checkpoint.folder} was made from"
        )
    expected, found = (c.config.get("model_type") for c in (packed.checkpoint, checkpoint))
    if expected != found:
        raise CheckpointError(
            f"{checkpoint.folder}: its model_type is {found!r}, that of "
            f"{packed.checkpoint.folder} is {expected!r}; give the model that was compressed"
        )
    weights = DenseWeights(checkpoint.folder)
    weights.check_shapes(packed.specs)
    return weights


def _examples(
    dense: Checkpoint,
    packed: Checkpoint,
    data: CalibrationData,
    options: RefinementOptions,
    dtype: str,
    progress: bool,
) -> list[Example]:
    """Run the dense model over the examples; it is gone before the packed one is loaded."""
    from tqdm import tqdm

    model = load_dense_model(dense, dtype)
    with tqdm(total=len(data), unit="example", desc="dense model", disable=not progress) as bar:
        inputs = data.model_inputs(packed.folder)
        return examples_of(model, inputs, options.positions, lambda: bar.update())


def _train(
    packed: Checkpoint,
    matrices: Mapping[str, TrainableMatrix],
    examples: list[Example],
    options: RefinementOptions,
    dtype: str,
    progress: bool,
) -> Outcome:
    from tqdm import tqdm

    model = load_dense_model(packed, dtype)
    make_trainable(model, matrices)
    with tqdm(total=options.steps, unit="step", desc="refining", disable=not progress) as bar:

        def done(held_out: float) -> None:
            bar.set_postfix_str(f"held-out KL {held_out:.4g}", refresh=False)
            bar.update()

        return train(model, matrices, examples, options, done)


def _write(
    run: PartialRun,
    packed: PackedCheckpoint,
    dense: DenseWeights,
    matrices: Mapping[str, TrainableMatrix],
    report: RefinementReport,
    data_hash: str,
    progress: bool,
) -> RefinementReport:
    from tqdm import tqdm

    checkpoint, works = packed.checkpoint, packed.works()
    rows = {row.name: row for row in inspect_checkpoint(checkpoint.folder).rows}

    def produce(number: int) -> Part:
        is_matrix, name = works[number]
        if not is_matrix:
            return Part.unchanged(checkpoint.tensors[name])
        state = matrices[name].stored()
        error = CompressedMatrix.from_state_dict(state).relative_error(dense.weight(name))
        tensors = {f"{name}.{suffix}": tensor for suffix, tensor in state.items()}
        return run.save_part(number, replace(rows[name], relative_error=error), tensors)

    settings = {
        "refinement": report.to_dict(),
        "data": data_hash,
        "compression": earlier_requests(checkpoint.folder)[1],
    }
    request = describe_request(checkpoint, settings, progress=progress)
    run.clear()
    run.start(request)
    with tqdm(total=len(works), unit="tensor", desc="writing", disable=not progress) as bar:

        def done(_row: TensorRow) -> None:
            bar.update()

        records = build_shards(run, [], len(works), produce, _SHARD_BYTES, done)
    written = CompressionReport(tuple(row for record in records for row in record.rows))
    config = CompressionConfig.from_dict(checkpoint.config["quantization_config"]["config"])
    card = model_card(checkpoint.folder, written, config, refinement=report.summary())
    manifest = manifest_of(request, records)
    publish(run, checkpoint, records, _config(checkpoint, report), manifest, card)
    return replace(report, compression=written)


def _config(checkpoint: Checkpoint, report: RefinementReport) -> dict[str, Any]:
    """Return ``config.json`` with a note of the refinement."""
    quantization = {**checkpoint.config["quantization_config"], "refinement": report.to_dict()}
    return {**checkpoint.config, "quantization_config": quantization}

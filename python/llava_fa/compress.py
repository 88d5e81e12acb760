"""Compresses a checkpoint, tensor by tensor: plan, calibrate, compress, assemble, publish.

Peak memory is that of the largest matrix and its working set, whatever the size of the model (a
calibration pass, if asked for, runs the dense model before).
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from . import writer
from .capture import CalibrationData, capture_second_moments
from .config import CompressionConfig
from .errors import DiskFullError, LlavaFaError, NonFiniteError
from .matrix import compress_matrix
from .model_card import model_card
from .modules import build_meta_model
from .output import (
    check_empty,
    check_places,
    clear_output,
    finished_manifest,
    manifest_of,
    publish,
)
from .packed_checkpoint import FORMAT_VERSION, QUANT_METHOD
from .partial import Part, PartialRun, ShardRecord, build_shards
from .plan import Plan, make_plan
from .recipe import Recipe
from .report import CompressionReport, TensorRow
from .request import check_same_request, describe_request
from .shards import Checkpoint, read_header

_SIZE_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

CalibrationInput = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


def compress_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: CompressionConfig | None = None,
    *,
    recipe: Recipe | str | os.PathLike[str] | list[Any] | None = None,
    calibration_data: CalibrationInput | None = None,
    calibration_samples: int = 128,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    on_nonfinite: Literal["error", "skip"] = "error",
    max_shard_size: int | str = "5GB",
) -> CompressionReport:
    """Compress the linear layers of a Hugging Face checkpoint into a new folder.

    Parameters
    ----------
    source
        Folder with ``config.json`` and safetensors files, or a hub id.
    output
        Folder to write; created if needed. It must be empty, or hold an interrupted run of the same
        request, which is then continued.
    config
        Settings for every matrix; ``CompressionConfig()`` if None.
    recipe
        Per-layer rules (see :mod:`llava_fa.recipe`): a YAML file, a list of rules, or None.
    calibration_data
        See :class:`llava_fa.capture.CalibrationData`; None compresses without data.
    calibration_samples
        At most so many examples are used.
    resume
        Continue an interrupted run; if False, start it anew.
    overwrite
        Replace a checkpoint in ``output``. Deletes only files that this function would write.
    progress
        Show a progress bar on stderr.
    on_nonfinite
        What to do with a weight that holds NaN or infinity: raise, or keep it dense with a warning.
    max_shard_size
        Bytes, or text like ``"5GB"``.

    Raises
    ------
    CheckpointError, MissingFileError
        The source cannot be used, or another process is writing to ``output``.
    DiskFullError
        Call again with the same arguments after making room: the run continues.
    NonFiniteError
        A weight or an activation is NaN or infinite.
    RecipeError
        The recipe does not fit the model.
    ResumeError
        ``output`` holds an interrupted run of another request.

    Examples
    --------
    >>> from llava_fa import CompressionConfig, compress_checkpoint
    >>> config = CompressionConfig(bits=3)
    >>> report = compress_checkpoint("llava-1.5-7b-hf", "small", config)  # doctest: +SKIP
    >>> print(report.summary_table())  # doctest: +SKIP
    """
    if on_nonfinite not in ("error", "skip"):
        raise ValueError(f"on_nonfinite must be 'error' or 'skip', got {on_nonfinite!r}")
    config, rules, folder = config or CompressionConfig(), Recipe.load(recipe), Path(output)
    shard_bytes = _parse_size(max_shard_size)
    checkpoint = Checkpoint.open(source)
    check_places(checkpoint.folder, folder)
    plan = make_plan(checkpoint, config, rules)
    _warn(plan.warnings)
    data = None
    if calibration_data is not None:
        data = CalibrationData(calibration_data, calibration_samples)
    settings = {
        "config": config.to_dict(),
        "recipe": rules.to_list(),
        "calibration": data.fingerprint() if data else None,
        "on_nonfinite": on_nonfinite,
        "max_shard_bytes": shard_bytes,
    }
    run = PartialRun(folder)
    with run.held(), _resumable_when_disk_is_full():
        request = describe_request(checkpoint, settings, progress=progress)
        if not overwrite and resume and (manifest := finished_manifest(folder, request)):
            run.clear()
            rows = tuple(TensorRow.from_dict(row) for row in manifest["rows"])
            return CompressionReport(rows, plan.warnings)
        _prepare(run, checkpoint, request, resume=resume, overwrite=overwrite)
        moments = _moments(run, checkpoint, plan, data) if data else {}
        with _progress_bar(checkpoint, progress) as done:

            def produce(number: int) -> Part:
                return _produce(run, plan, number, moments, on_nonfinite)

            records = build_shards(run, len(plan.entries), produce, shard_bytes, done)
        return _publish(run, checkpoint, records, config, request, plan.warnings)


@contextmanager
def _resumable_when_disk_is_full() -> Iterator[None]:
    try:
        yield
    except DiskFullError as error:
        raise DiskFullError(
            f"{error}; free some space and run the same command again: it keeps the finished "
            "tensors and continues there"
        ) from error


def _parse_size(size: int | str) -> int:
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", str(size).upper())
    unit = (
        (match[2] if match[2].endswith("B") or not match[2] else match[2] + "B") if match else "?"
    )
    unit = "" if unit == "B" else unit
    if match is None or unit not in _SIZE_UNITS or float(match[1]) <= 0:
        raise ValueError(f"max_shard_size must be bytes or like '5GB', got {size!r}")
    return int(float(match[1]) * _SIZE_UNITS[unit])


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        warnings.warn(message, stacklevel=3)


def _prepare(
    run: PartialRun,
    checkpoint: Checkpoint,
    request: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Begin anew, or leave the state of an interrupted run as it is to be continued."""
    earlier, output = run.request(), run.output
    if earlier is not None and not overwrite and resume:
        check_same_request(output, earlier, request)
        return
    if overwrite or earlier is not None:
        clear_output(checkpoint.folder, output)
    if not overwrite:
        check_empty(output)
    run.clear()
    run.start(request)


def _moments(
    run: PartialRun, checkpoint: Checkpoint, plan: Plan, data: CalibrationData
) -> dict[str, torch.Tensor]:
    """Return the second moments by module name; kept in the state, so that resuming uses the same
    bits even if the forward pass would not reproduce them.
    """
    path = run.folder / "moments.safetensors"
    if path.exists():
        return {name: entry.read() for name, entry in read_header(path).items()}
    names = [name for name, _ in plan.matrices.values()]
    model = load_dense_model(checkpoint)
    captured = capture_second_moments(model, data.model_inputs(checkpoint.folder), names)
    moments = {name: moment for name, (moment, _) in captured.items()}
    from safetensors.torch import save

    writer.write_bytes(path, save(moments))
    return moments


def load_dense_model(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint's own class of model in its own type, on the CPU."""
    model_class: Any = type(build_meta_model(checkpoint))
    return model_class.from_pretrained(checkpoint.folder, dtype="auto").eval()


def _produce(
    run: PartialRun,
    plan: Plan,
    number: int,
    moments: Mapping[str, torch.Tensor],
    on_nonfinite: str,
) -> Part:
    """Make one part: compress the tensor and save it, or keep it as it is."""
    entry = plan.entries[number]
    if entry.name not in plan.matrices:
        return Part.unchanged(entry)
    name, config = plan.matrices[entry.name]
    weight = entry.read()
    try:
        matrix = compress_matrix(
            weight, config.for_checkpoint(), input_second_moment=moments.get(name)
        )
    except NonFiniteError as error:
        message = f"{entry.file}: tensor {entry.name}: {error}"
        if on_nonfinite == "error":
            raise NonFiniteError(
                f"{message}; repair the weight, or keep it dense with on_nonfinite='skip' "
                "(--on-nonfinite skip)"
            ) from error
        warnings.warn(f"{message}; kept dense", stacklevel=2)
        return Part.unchanged(entry, note="holds NaN or infinity")
    except (LlavaFaError, ValueError) as error:
        raise type(error)(f"{entry.file}: tensor {entry.name}: {error}") from error
    row = TensorRow(
        name=name,
        shape=entry.shape,
        dtype=entry.dtype,
        nbytes_before=entry.nbytes,
        nbytes_after=matrix.nbytes,
        spec=matrix.spec,
        relative_error=matrix.relative_error(weight),
    )
    tensors = {f"{name}.{suffix}": tensor for suffix, tensor in matrix.state_dict().items()}
    return run.save_part(number, row, tensors)


@contextmanager
def _progress_bar(checkpoint: Checkpoint, visible: bool) -> Iterator[Callable[[TensorRow], None]]:
    """Show the source bytes done and the time left."""
    from tqdm import tqdm

    with tqdm(
        total=checkpoint.nbytes,
        unit="B",
        unit_scale=True,
        desc="compressing",
        disable=not visible,
        # Speed is that of the last tensors: kept ones pass in no time and would promise too much.
        smoothing=0.1,
    ) as bar:
        yield lambda row: _advance(bar, row)


def _advance(bar: Any, row: TensorRow) -> None:
    bar.update(row.nbytes_before)


def _publish(
    run: PartialRun,
    checkpoint: Checkpoint,
    records: list[ShardRecord],
    config: CompressionConfig,
    request: Mapping[str, Any],
    messages: tuple[str, ...],
) -> CompressionReport:
    rows = tuple(row for record in records for row in record.rows)
    report = CompressionReport(rows, messages)
    modules = {row.name: row.spec.to_dict() for row in rows if row.spec}
    quantization = {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "config": config.to_dict(),
        "modules": modules,
    }
    publish(
        run,
        checkpoint,
        records,
        {**checkpoint.config, "quantization_config": quantization},
        manifest_of(request, records),
        model_card(checkpoint.folder, report, config),
    )
    return report

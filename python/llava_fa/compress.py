"""Compresses a checkpoint, tensor by tensor: plan, calibrate, compress, assemble, publish.

Peak memory is that of the largest matrix and its working set, whatever the size of the model.
Calibration, if asked for, needs the dense model and ``calibration_memory`` beside.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from .bit_plan import BitPlan
from .calibrate import DEFAULT_MEMORY
from .calibration_run import CalibrationInput, CalibrationRequest, CalibrationRun
from .choice import choose_settings
from .config import CompressionConfig
from .device_compression import compression_device, to_device
from .devices import torch_device
from .errors import DiskFullError, LlavaFaError, NonFiniteError
from .in_flight import PartsInFlight
from .matrix import compress_matrix
from .model_card import model_card
from .moments import MomentSource
from .output import (
    check_empty,
    check_places,
    clear_output,
    earlier_requests,
    finished_manifest,
    manifest_of,
    publish,
)
from .packed_checkpoint import FORMAT_VERSION, QUANT_METHOD
from .partial import Part, PartialRun, ShardRecord, build_shards
from .plan import Plan, check_limit, make_plan
from .recipe import Recipe
from .report import CompressionReport, TensorRow
from .request import check_same_request, describe_request, with_settings
from .sensitivity import DEFAULT_SENSITIVITY
from .shards import Checkpoint
from .sizes import parse_size


def compress_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: CompressionConfig | None = None,
    *,
    recipe: Recipe | str | os.PathLike[str] | list[Any] | None = None,
    calibration_data: CalibrationInput | None = None,
    calibration_samples: int = 128,
    calibration_order: str = "one-pass",
    calibration_memory: int | str = DEFAULT_MEMORY,
    save_calibration: str | os.PathLike[str] | None = None,
    load_calibration: str | os.PathLike[str] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    on_nonfinite: Literal["error", "skip"] = "error",
    max_shard_size: int | str = "5GB",
    target_bits: float | None = None,
    target_size: int | str | None = None,
    sensitivity: str = DEFAULT_SENSITIVITY,
    plan: BitPlan | str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    calibration_device: str | torch.device | None = None,
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
    calibration_order
        ``"one-pass"``: every layer is calibrated on the inputs that the dense model gives it.
        ``"sequential"``: on those that the layers compressed before it give; about four passes over
        the model instead of two, and nothing that can be saved for other settings.
    calibration_memory
        Bytes, or text like ``"4GB"``, for second moments and remembered hidden states beside the
        model. Less takes more forward passes; the result is the same.
    save_calibration
        Write all second moments to this safetensors file, for later runs with other settings.
    load_calibration
        Take the second moments from such a file instead of ``calibration_data``.
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
    target_bits, target_size, sensitivity
        Instead of ``config.bits``: an average of stored bits per weight, or a size of the weight
        files, that the output does not exceed; see :func:`plan_checkpoint`.
    plan
        Instead of ``config`` and ``recipe``: the settings of every layer, from
        :func:`plan_checkpoint` or a file that ``llava-fa plan`` saved.
    device
        ``"cpu"``, or an NVIDIA GPU (``"cuda"``, ``"cuda:1"``) that finds the codes and the low rank
        of every matrix.
    calibration_device
        Where the dense model runs over the examples, if not on ``device``: the whole model must fit
        there, and ``calibration_memory`` beside.

    Raises
    ------
    BudgetError
        The target is below what is possible.
    PlanError
        The plan does not fit the checkpoint.
    DeviceError, DeviceMemoryError
        The GPU cannot be used, or its memory is too full.
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
    choice = choose_settings(config, recipe, target_bits, target_size, sensitivity, plan)
    config, rules, folder = choice.config, choice.recipe, Path(output)
    shard_bytes = parse_size("max_shard_size", max_shard_size)
    place = compression_device(device)
    calibration = CalibrationRequest.of(
        calibration_data,
        calibration_samples,
        calibration_order,
        calibration_memory,
        save_calibration,
        load_calibration,
        place
        if calibration_device is None
        else torch_device("calibration_device", calibration_device),
    )
    checkpoint = Checkpoint.open(source)
    check_places(checkpoint.folder, folder)
    work = make_plan(checkpoint, config, choice.plan or rules)
    _warn(work.warnings)
    settings = {
        "config": config.to_dict(),
        "recipe": rules.to_list(),
        "calibration": calibration.settings(),
        "on_nonfinite": on_nonfinite,
        "max_shard_bytes": shard_bytes,
        # A GPU chooses between points that are equally near as it may.
        **({"device": place.type} if place.type != "cpu" else {}),
        **choice.to_dict(),
    }
    request = describe_request(checkpoint, settings, progress=progress)
    earlier = earlier_requests(folder) if resume and not overwrite else []
    bit_plan = choice.bit_plan(checkpoint, work, calibration, request, earlier, progress=progress)
    if bit_plan is not None:
        work = work.within(bit_plan)
        request = with_settings(request, {**settings, "plan": bit_plan.to_dict()})
    hashes = request["source"], request["settings_sha256"]
    moments = CalibrationRun(checkpoint, work, calibration, *hashes)
    moments.check_places(folder, overwrite=overwrite)
    run = PartialRun(folder)
    with run.held(), _resumable_when_disk_is_full():
        finished = finished_manifest(folder, request) if resume and not overwrite else None
        if finished and moments.is_saved:
            run.clear()
            rows = tuple(TensorRow.from_dict(row) for row in finished["rows"])
            return CompressionReport(rows, work.warnings)
        _prepare(run, checkpoint, request, resume=resume, overwrite=overwrite)

        def make(number: int) -> Part:
            return _produce(run, work, number, moments, on_nonfinite, place)

        with (
            _progress_bar(checkpoint, progress) as done,
            PartsInFlight(make, place) as in_flight,
        ):

            def produce(number: int) -> Part:
                part = in_flight(number)
                done(part.row)
                return part

            records = moments.usable(run, run.finished_shards())
            unsaved = moments.compress(run, records, produce, in_flight.expect, progress=progress)
            left = moments.pending(run, records).values()
            in_flight.expect(number for number in left if number not in unsaved)
            records = build_shards(
                run,
                records,
                len(work.entries),
                lambda number: unsaved.pop(number, None) or produce(number),
                shard_bytes,
                done,
            )
        return _publish(run, checkpoint, records, config, request, work.warnings)


@contextmanager
def _resumable_when_disk_is_full() -> Iterator[None]:
    try:
        yield
    except DiskFullError as error:
        raise DiskFullError(
            f"{error}; free some space and run the same command again: it keeps the finished "
            "tensors and continues there"
        ) from error


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


def _produce(
    run: PartialRun,
    plan: Plan,
    number: int,
    moments: MomentSource,
    on_nonfinite: str,
    device: torch.device,
) -> Part:
    """Make one part: compress the tensor and save it, or keep it as it is."""
    entry = plan.entries[number]
    if entry.name not in plan.matrices:
        return Part.unchanged(entry)
    name, config = plan.matrices[entry.name]
    weight, moment = entry.read(), moments.find(name)
    values = moment.values if moment else None
    try:
        weight = to_device(weight, device)
        matrix = compress_matrix(weight, config.for_checkpoint(), input_second_moment=values)
        check_limit(name, matrix.nbytes, plan.limits)
        relative_error = matrix.relative_error(weight)
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
        relative_error=relative_error,
        second_moment=moment.kind if moment else "",
        calibration_rows=moment.rows if moment else 0,
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
        shown: set[str] = set()

        def advance(row: TensorRow) -> None:
            # Calibrated matrices are told twice: when they are finished, and when a shard is.
            if row.name not in shown:
                bar.update(row.nbytes_before)
            shown.add(row.name)

        yield advance


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

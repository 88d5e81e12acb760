"""From a size target to a plan: profile every matrix, weight the errors, allocate the bytes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .allocate import Candidate, allocate
from .bit_plan import BitPlan, PlannedMatrix
from .calibrate import DEFAULT_MEMORY
from .calibration_run import CalibrationInput, CalibrationRequest
from .config import CompressionConfig
from .dense_model import load_dense_model
from .devices import torch_device
from .error_model import CODE_SIZES, DEFAULT_RANKS, MatrixProfile
from .errors import BudgetError
from .output_size import file_overhead, kept_bytes, matrix_bytes
from .plan import Plan, make_plan
from .profiles import Profiler
from .recipe import Recipe
from .request import describe_request
from .sensitivity import DEFAULT_SENSITIVITY, SENSITIVITIES, SensitivityProbe, rule_weights
from .shards import Checkpoint
from .sizes import parse_size


@dataclass(frozen=True)
class Target:
    """What an allocation has to reach: an average of stored bits, or the size of the weight files.

    Exactly one of ``bits`` and ``nbytes`` is set.
    """

    bits: float | None
    nbytes: int | None
    ranks: tuple[int, ...] = DEFAULT_RANKS
    sensitivity: str = DEFAULT_SENSITIVITY

    @classmethod
    def of(
        cls,
        bits: float | None,
        size: int | str | None,
        ranks: Sequence[int] | None = None,
        sensitivity: str = DEFAULT_SENSITIVITY,
    ) -> Target:
        """Check a user's options."""
        if (bits is None) == (size is None):
            raise ValueError(
                f"expected one of target_bits and target_size, got {bits!r} and {size!r}"
            )
        if bits is not None and not (math.isfinite(bits) and bits > 0):
            raise ValueError(f"target_bits must be a positive number, got {bits!r}")
        if sensitivity not in SENSITIVITIES:
            raise ValueError(f"sensitivity must be one of {SENSITIVITIES}, got {sensitivity!r}")
        chosen = tuple(sorted(set(DEFAULT_RANKS if ranks is None else ranks)))
        if not chosen or any(rank != int(rank) or rank < 0 for rank in chosen):
            raise ValueError(f"ranks must be integers that are not negative, got {ranks!r}")
        nbytes = None if size is None else parse_size("target_size", size)
        return cls(None if bits is None else float(bits), nbytes, chosen, sensitivity)

    def goal(self) -> dict[str, float]:
        """Return the target as a plan states it."""
        return {"nbytes": self.nbytes} if self.nbytes is not None else {"bits": self.bits or 0.0}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "ranks": list(self.ranks)}


def plan_checkpoint(
    source: str | os.PathLike[str],
    config: CompressionConfig | None = None,
    *,
    target_bits: float | None = None,
    target_size: int | str | None = None,
    recipe: Recipe | str | os.PathLike[str] | list[Any] | None = None,
    ranks: Sequence[int] | None = None,
    sensitivity: str = DEFAULT_SENSITIVITY,
    calibration_data: CalibrationInput | None = None,
    calibration_samples: int = 128,
    calibration_memory: int | str = DEFAULT_MEMORY,
    load_calibration: str | os.PathLike[str] | None = None,
    on_nonfinite: Literal["error", "skip"] = "error",
    max_shard_size: int | str = "5GB",
    progress: bool = True,
    calibration_device: str | torch.device = "cpu",
) -> BitPlan:
    """Choose code size and rank of every matrix for a size target; writes nothing.

    Parameters
    ----------
    source
        Folder with ``config.json`` and safetensors files, or a hub id.
    config
        Settings of every matrix; its ``bits`` do not matter, and a ``rank`` above 0 is kept.
    target_bits
        Average of stored bits per weight over all compressed matrices, those that a recipe fixes
        included. Never exceeded.
    target_size
        Bytes, or text like ``"3.2GB"``, of all safetensors files of the output: compressed and kept
        tensors and the files' headers. Never exceeded.
    recipe
        Per-layer rules. A rule's ``bits`` or ``rank`` stay as they are.
    ranks
        Ranks to choose from.
    sensitivity
        See :mod:`llava_fa.sensitivity`.
    calibration_data, calibration_samples, calibration_memory
        What the compression will be calibrated with: errors are then those of the layers' outputs,
        after what error feedback gains, and room for channel scales is set aside.
        ``sensitivity="measured"`` measures on it.
    load_calibration
        Second moments that :func:`compress_checkpoint` saved, instead of ``calibration_data``.
    on_nonfinite, max_shard_size, progress
        As for :func:`compress_checkpoint`.
    calibration_device
        Where the dense model runs: ``"cpu"``, or a GPU of torch's (``"cuda"``, ``"cuda:1"``).

    Raises
    ------
    BudgetError
        The target is below what is possible; the message states the minimum.
    CheckpointError, RecipeError, NonFiniteError, DeviceError, DeviceMemoryError
        As for :func:`compress_checkpoint`.

    Examples
    --------
    >>> from llava_fa import plan_checkpoint
    >>> plan = plan_checkpoint("llava-1.5-7b-hf", target_bits=2.75)  # doctest: +SKIP
    >>> plan.save("plan.json")  # doctest: +SKIP
    """
    target = Target.of(target_bits, target_size, ranks, sensitivity)
    config, rules = config or CompressionConfig(), Recipe.load(recipe)
    calibration = CalibrationRequest.of(
        calibration_data,
        calibration_samples,
        "one-pass",
        calibration_memory,
        None,
        load_calibration,
        torch_device("calibration_device", calibration_device),
    )
    checkpoint = Checkpoint.open(source)
    work = make_plan(checkpoint, config, rules)
    hashes = (
        describe_request(checkpoint, {}, progress=progress)["source"] if load_calibration else {}
    )
    return plan_target(
        checkpoint,
        work,
        target,
        config,
        rules,
        calibration,
        hashes,
        skip_nonfinite=on_nonfinite == "skip",
        max_shard_bytes=parse_size("max_shard_size", max_shard_size),
        progress=progress,
    )


def plan_target(
    checkpoint: Checkpoint,
    plan: Plan,
    target: Target,
    config: CompressionConfig,
    recipe: Recipe,
    calibration: CalibrationRequest,
    source_hashes: Mapping[str, str],
    *,
    skip_nonfinite: bool,
    max_shard_bytes: int,
    progress: bool,
) -> BitPlan:
    """Do the work of :func:`plan_checkpoint` for an open checkpoint and its plan of tensors.

    ``source_hashes`` are those of the checkpoint's files; they matter if ``calibration`` loads a
    file.
    """
    probe = _probe(checkpoint, target, calibration)
    position = {name: number for number, name in enumerate(plan.layers)}
    options = {
        tensor: _options(settings, recipe.overrides_of(name), target.ranks)
        for tensor, (name, settings) in sorted(
            plan.matrices.items(), key=lambda item: position[item[1][0]]
        )
    }
    profiler = Profiler(checkpoint, plan, options, calibration, source_hashes, probe)
    profiles, broken = profiler.run(skip_nonfinite=skip_nonfinite, progress=progress)
    names = {tensor: plan.matrices[tensor][0] for tensor in profiles}
    shapes = {names[tensor]: profile.shape for tensor, profile in profiles.items()}
    rule = probe.weights() if probe else rule_weights(target.sensitivity, shapes)

    def weight(tensor: str, settings: CompressionConfig) -> float:
        return rule[names[tensor]] / profiles[tensor].unit(settings)

    ledger = _Ledger(checkpoint, plan, profiles, target, max_shard_bytes)
    candidates = {
        tensor: {
            Candidate(
                settings.bits,
                settings.rank,
                ledger.cost(_planned(names[tensor], profile, settings)),
                weight(tensor, settings) * profile.relative_error(settings),
            ): settings
            for settings in options[tensor]
            if settings.rank in profile.tail
        }
        for tensor, profile in profiles.items()
    }
    try:
        chosen, unused = allocate(
            {tensor: list(choices) for tensor, choices in candidates.items()}, ledger.budget
        )
    except BudgetError as error:
        raise ledger.too_small(error) from error
    matrices = tuple(
        _planned(
            names[tensor],
            profiles[tensor],
            candidates[tensor][candidate],
            weight(tensor, candidates[tensor][candidate]),
            fixed="bits" in recipe.overrides_of(names[tensor]),
        )
        for tensor, candidate in chosen.items()
    )
    notes = [f"{name} holds NaN or infinity and stays dense" for name in broken]
    if any(profile.of_output for profile in profiles.values()):
        notes.append("note: predicted errors are those of the layers' outputs on the examples")
    if unused:
        notes.append("note: the target exceeds what the most accurate settings take")
    kept = set(plan.layers) - {matrix.name for matrix in matrices}
    return BitPlan(
        target.goal(),
        target.sensitivity,
        config,
        matrices,
        tuple(name for name in plan.layers if name in kept),
        ledger.file_bytes(matrices),
        tuple(notes),
    )


def _options(
    settings: CompressionConfig, overrides: Mapping[str, Any], ranks: Sequence[int]
) -> list[CompressionConfig]:
    """Return the settings to choose from; what a recipe or the configuration fixes stays fixed."""
    if "bits" in overrides:
        return [settings]
    if settings.rank or "rank" in overrides:
        ranks = (settings.rank,)
    sizes = []
    for bits in CODE_SIZES:
        try:
            sizes.append(settings.replace(bits=bits))
        except ValueError:  # a size that this codec does not have
            continue
    return [size.replace(rank=rank) for size in sizes for rank in ranks]


def _probe(
    checkpoint: Checkpoint, target: Target, calibration: CalibrationRequest
) -> SensitivityProbe | None:
    """Load what measures sensitivities, if the target asks for it."""
    if target.sensitivity != "measured":
        return None
    if calibration.data is None:
        raise ValueError(
            "sensitivity='measured' measures on examples: pass calibration_data (--calib)"
        )
    inputs = list(calibration.data.model_inputs(checkpoint.folder))
    return SensitivityProbe(load_dense_model(checkpoint, device=calibration.device), inputs)


def _planned(
    name: str,
    profile: MatrixProfile,
    settings: CompressionConfig,
    weight: float = 1.0,
    *,
    fixed: bool = False,
) -> PlannedMatrix:
    return PlannedMatrix(
        name,
        profile.shape,
        settings,
        profile.channel_scale_in,
        profile.channel_scale_out,
        weight,
        profile.relative_error(settings),
        fixed,
    )


def earlier_plan(
    earlier: Iterable[Mapping[str, Any] | None], request: Mapping[str, Any]
) -> BitPlan | None:
    """Return the plan of an earlier run that was asked for the same, if one of these was.

    Resuming must not depend on whether planning gives the same bits twice, nor pay for it twice.
    """
    wanted = json.loads(json.dumps(request))
    for old in earlier:
        settings = dict((old or {}).get("settings", {}))
        plan = settings.pop("plan", None)
        same = old and all(old.get(key) == wanted[key] for key in ("producer", "source"))
        if plan is not None and same and settings == wanted["settings"]:
            return BitPlan.from_dict(plan)
    return None


class _Ledger:
    """Counts bytes the way the target does."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        profiles: Mapping[str, MatrixProfile],
        target: Target,
        max_shard_bytes: int,
    ) -> None:
        self._target, self._max_shard_bytes = target, max_shard_bytes
        # No output is larger than this, so no offset in a header has more digits.
        largest = target.nbytes or 4 * checkpoint.nbytes + 10**6
        self._digits = len(str(max(largest, checkpoint.nbytes)))
        self._weights = sum(rows * columns for rows, columns in map(_shape, profiles.values()))
        kept = [entry for entry in plan.entries if entry.name not in profiles]
        self._kept = kept_bytes(kept, self._digits)
        self._folder: Path = checkpoint.folder

    @property
    def budget(self) -> int:
        """What the matrices may cost together."""
        if self._target.nbytes is None:
            return int((self._target.bits or 0.0) * self._weights / 8)
        return self._target.nbytes - self._kept - self._overhead(self._target.nbytes)

    def _overhead(self, total: int) -> int:
        return file_overhead(total, self._max_shard_bytes)

    def cost(self, matrix: PlannedMatrix) -> int:
        """What a matrix costs: its stored bytes, and for a target in bytes its header entries."""
        if self._target.nbytes is None:
            return matrix.nbytes
        return matrix_bytes(matrix.name, matrix.spec, self._digits)

    def file_bytes(self, matrices: Iterable[PlannedMatrix]) -> int:
        """Bytes of the weight files, at most."""
        total = self._kept + sum(
            matrix_bytes(matrix.name, matrix.spec, self._digits) for matrix in matrices
        )
        return total + self._overhead(total)

    def too_small(self, error: BudgetError) -> BudgetError:
        """Say in the target's own unit what the least possible is."""
        if self._target.nbytes is None:
            least = math.ceil(8e3 * error.minimum / self._weights) / 1e3
            return BudgetError(
                f"{self._folder}: target_bits {self._target.bits:g} is below the smallest possible "
                f"average, {least:.3f} stored bits per weight; raise the target, or keep fewer "
                "layers fixed in the recipe",
                least,
            )
        size = self._kept + int(error.minimum)
        size += self._overhead(size + self._overhead(size))
        return BudgetError(
            f"{self._folder}: target_size of {self._target.nbytes} bytes is below the smallest "
            f"possible, {size} bytes ({size / 1e6:.2f} MB), of which {self._kept} are tensors that "
            "are kept as they are; raise the target, or compress more layers in a recipe",
            size,
        )


def _shape(profile: MatrixProfile) -> tuple[int, int]:
    return profile.shape

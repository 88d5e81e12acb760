"""The result of an allocation: the settings of every matrix, saved as ``plan.json``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import writer
from .config import CompressionConfig
from .errors import PlanError
from .matrix_spec import MatrixSpec
from .modules import LinearLayer
from .report import align, group_of

_FORMAT, _VERSION = "llava_fa plan", 1


@dataclass(frozen=True)
class PlannedMatrix:
    """One matrix and its settings.

    Attributes
    ----------
    name, shape
        Module name and (m, n).
    config
        All settings.
    channel_scale_in, channel_scale_out
        Whether room is set aside for these scales.
    weight
        Sensitivity: what one unit of relative error of this matrix counts.
    predicted_error
        Relative squared error that the allocation expects.
    fixed
        Whether a recipe decided the code size.
    """

    name: str
    shape: tuple[int, int]
    config: CompressionConfig
    channel_scale_in: bool
    channel_scale_out: bool
    weight: float
    predicted_error: float
    fixed: bool = False

    @property
    def nbytes(self) -> int:
        """Stored bytes, at most."""
        return self.spec.nbytes

    @property
    def spec(self) -> MatrixSpec:
        """How it will be stored."""
        return MatrixSpec(
            shape=self.shape,
            codec=self.config.codec,
            code_bits=self.config.code_bits,
            rank=self.config.rank,
            factor_bits=self.config.factor_bits,
            signs=self.config.signs,
            seed=self.config.seed,
            channel_scale_in=self.channel_scale_in,
            channel_scale_out=self.channel_scale_out,
            state_bits=self.config.stored_state_bits,
        )

    @property
    def weights(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    def to_dict(self, base: CompressionConfig) -> dict[str, Any]:
        """Return plain JSON types; of the settings bits, rank and what differs from ``base``."""
        usual = base.to_dict()
        settings = {
            key: value
            for key, value in self.config.to_dict().items()
            if key in ("bits", "rank") or value != usual[key]
        }
        return {
            "name": self.name,
            "shape": list(self.shape),
            **settings,
            "channel_scales": [self.channel_scale_in, self.channel_scale_out],
            "weight": self.weight,
            "predicted_error": self.predicted_error,
            "fixed": self.fixed,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], base: CompressionConfig) -> PlannedMatrix:
        """Inverse of :meth:`to_dict`."""
        settings = dict(values)
        rows, columns = (int(size) for size in settings.pop("shape"))
        scale_in, scale_out = (bool(flag) for flag in settings.pop("channel_scales"))
        planned = cls(
            name=str(settings.pop("name")),
            shape=(rows, columns),
            weight=float(settings.pop("weight")),
            predicted_error=float(settings.pop("predicted_error")),
            fixed=bool(settings.pop("fixed")),
            channel_scale_in=scale_in,
            channel_scale_out=scale_out,
            config=base.replace(**settings),
        )
        MatrixSpec.from_dict(planned.spec.to_dict())  # refuses what no matrix can be
        return planned


@dataclass(frozen=True)
class BitPlan:
    """Settings of every linear layer of a model, made by :func:`llava_fa.plan_checkpoint`.

    Attributes
    ----------
    target
        ``{"bits": average stored bits per weight}`` or ``{"nbytes": bytes of the weight files}``.
    sensitivity
        How the errors of different matrices were weighted.
    config
        The settings that matrices share unless they say otherwise.
    matrices
        The matrices to compress, in the model's order.
    dense
        Names of the linear layers that stay as they are.
    file_nbytes
        Bytes that the weight files will take at most, everything in them counted.
    notes
        What the user should know.
    """

    target: Mapping[str, float]
    sensitivity: str
    config: CompressionConfig
    matrices: tuple[PlannedMatrix, ...]
    dense: tuple[str, ...]
    file_nbytes: int
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Stored bytes of the compressed matrices, at most."""
        return sum(matrix.nbytes for matrix in self.matrices)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the compressed matrices, at most."""
        return 8 * self.nbytes / sum(matrix.weights for matrix in self.matrices)

    @property
    def objective(self) -> float:
        """The weighted sum of predicted errors that the allocation minimized."""
        return math.fsum(matrix.weight * matrix.predicted_error for matrix in self.matrices)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "target": dict(self.target),
            "bits_per_weight": self.bits_per_weight,
            "file_nbytes": self.file_nbytes,
            "sensitivity": self.sensitivity,
            "config": self.config.to_dict(),
            "matrices": [matrix.to_dict(self.config) for matrix in self.matrices],
            "dense": list(self.dense),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Any, where: str = "plan") -> BitPlan:
        """Inverse of :meth:`to_dict`; ``where`` names the origin in errors."""
        if not isinstance(values, Mapping) or values.get("format") != _FORMAT:
            raise PlanError(f"{where}: not a plan; make one with llava-fa plan SOURCE")
        if values.get("version") != _VERSION:
            raise PlanError(
                f"{where}: plan version {values.get('version')!r}, this llava-fa reads {_VERSION}; "
                "make the plan anew"
            )
        try:
            base = CompressionConfig.from_dict(values["config"])
            return cls(
                target=dict(values["target"]),
                sensitivity=str(values["sensitivity"]),
                config=base,
                matrices=tuple(_parse_matrix(entry, base) for entry in values["matrices"]),
                dense=tuple(map(str, values["dense"])),
                file_nbytes=int(values["file_nbytes"]),
                notes=tuple(map(str, values["notes"])),
            )
        except KeyError as error:
            raise PlanError(f"{where}: the key {error} is missing; make the plan anew") from error
        except (TypeError, ValueError) as error:
            raise PlanError(f"{where}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``plan.json``; equal plans give equal bytes."""
        writer.write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, plan: BitPlan | str | os.PathLike[str]) -> BitPlan:
        """Accept a plan or the path of a saved one."""
        if isinstance(plan, BitPlan):
            return plan
        try:
            values = json.loads(Path(plan).read_bytes())
        except FileNotFoundError:
            raise PlanError(f"{plan}: no such plan file") from None
        except ValueError as error:
            raise PlanError(f"{plan}: not valid JSON ({error})") from None
        return cls.from_dict(values, os.fspath(plan))

    def resolve(
        self, layers: Mapping[str, LinearLayer], default: CompressionConfig | None = None
    ) -> dict[str, CompressionConfig | None]:
        """Give every layer its configuration, or None if it stays dense, as a recipe does.

        There is no use for a ``default``: a plan speaks of every layer.

        Raises
        ------
        PlanError
            The plan was made for other layers; the message names the first that differs.
        """
        planned = {matrix.name: matrix for matrix in self.matrices}
        known = {*planned, *self.dense}
        for name, layer in layers.items():
            if name not in known:
                raise _misfit(f"{name} of shape {list(layer.shape)} is not in the plan")
            if name in planned and planned[name].shape != layer.shape:
                expected = list(planned[name].shape)
                raise _misfit(f"{name} has shape {list(layer.shape)}, in the plan {expected}")
            if name in planned and layer.fixed:
                raise _misfit(f"{name} cannot be compressed ({layer.kept}), the plan asks for it")
        for name in (*planned, *self.dense):
            if name not in layers:
                raise _misfit(f"the plan's {name} is no linear layer of it")
        return {name: planned[name].config if name in planned else None for name in layers}

    def summary_table(self) -> str:
        """Return the table that the command line prints."""
        lines: list[tuple[str, ...]] = [
            ("layers", "count", "shape", "code bits", "rank", "bits/weight", "pred. error")
        ]
        groups: dict[str, list[PlannedMatrix]] = {}
        for matrix in self.matrices:
            groups.setdefault(group_of(matrix.name), []).append(matrix)
        lines += [_group_line(group, matrices) for group, matrices in groups.items()]
        return "\n".join([*align(lines), "", self.total_line(), *self.notes])

    def total_line(self) -> str:
        """Return the totals in one line."""
        return (
            f"{len(self.matrices)} matrices: {self.bits_per_weight:.3f} stored bits per weight, "
            f"{self.nbytes / 1e6:.2f} MB; weight files with everything else: at most "
            f"{self.file_nbytes / 1e6:.2f} MB"
        )


def _parse_matrix(entry: Any, base: CompressionConfig) -> PlannedMatrix:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f"expected matrices with a name, got {entry!r:.80}")
    try:
        return PlannedMatrix.from_dict(entry, base)
    except (TypeError, ValueError) as error:
        raise ValueError(f"matrix {name}: {error}") from error


def _misfit(what: str) -> PlanError:
    return PlanError(
        f"the plan does not fit the checkpoint: {what}; make the plan anew from this checkpoint "
        "(llava-fa plan SOURCE)"
    )


def _group_line(group: str, matrices: Sequence[PlannedMatrix]) -> tuple[str, ...]:
    shapes = {matrix.shape for matrix in matrices}
    weights = sum(matrix.weights for matrix in matrices)
    error = sum(matrix.predicted_error * matrix.weights for matrix in matrices) / weights
    return (
        group,
        str(len(matrices)),
        "x".join(map(str, matrices[0].shape)) if len(shapes) == 1 else "mixed",
        _range(sorted(matrix.config.bits for matrix in matrices)),
        _range(sorted(matrix.config.rank for matrix in matrices)),
        f"{8 * sum(matrix.nbytes for matrix in matrices) / weights:.3f}",
        f"{error:.3g}",
    )


def _range(values: Sequence[float]) -> str:
    low, high = values[0], values[-1]
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"

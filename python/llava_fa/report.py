"""What a compression did: one row per tensor, totals, and a table per group of layers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from .matrix_spec import MatrixSpec


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the source and what became of it.

    Parameters
    ----------
    name
        Canonical module name if compressed, else the tensor's name.
    shape, dtype
        As in the source (safetensors' name of the type).
    nbytes_before, nbytes_after
        Stored bytes; afterwards codes, scales, factors and padding together.
    spec
        How it is stored, or None if it was kept as it was.
    relative_error
        ``||W - Ŵ||² / ||W||²``; None if kept or unknown.
    note
        Why it was kept, if that needs saying.
    second_moment, calibration_rows
        Which second moment of the input was known, ``"full"``, ``"diagonal"`` or ``""``, and over
        how many inputs it was averaged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes_before: int
    nbytes_after: int
    spec: MatrixSpec | None = None
    relative_error: float | None = None
    note: str = ""
    second_moment: str = ""
    calibration_rows: int = 0

    @property
    def weights(self) -> int:
        """Number of entries."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bits_per_weight(self) -> float:
        """All stored bits per entry."""
        return 8 * self.nbytes_after / self.weights if self.weights else 0.0

    @property
    def group(self) -> str:
        """The layers of one kind: the name with every number replaced by a star."""
        return group_of(self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        values = asdict(self)
        values["shape"] = list(self.shape)
        values["spec"] = self.spec.to_dict() if self.spec else None
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TensorRow:
        """Inverse of :meth:`to_dict`."""
        spec = MatrixSpec.from_dict(values["spec"]) if values["spec"] else None
        return cls(**{**values, "shape": tuple(values["shape"]), "spec": spec})


@dataclass(frozen=True)
class GroupSummary:
    """Figures over the compressed layers of one kind; the error is pooled over their weights."""

    group: str
    count: int
    shape: tuple[int, ...] | None
    bits_per_weight: float
    relative_error: float | None


@dataclass(frozen=True)
class CompressionReport:
    """The result of :func:`compress_checkpoint`, also read back by :func:`inspect_checkpoint`."""

    rows: tuple[TensorRow, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def compressed(self) -> tuple[TensorRow, ...]:
        """Rows of compressed matrices."""
        return tuple(row for row in self.rows if row.spec is not None)

    @property
    def kept(self) -> tuple[TensorRow, ...]:
        """Rows of tensors stored as they were."""
        return tuple(row for row in self.rows if row.spec is None)

    @property
    def nbytes_before(self) -> int:
        """Bytes of all tensors of the source."""
        return sum(row.nbytes_before for row in self.rows)

    @property
    def nbytes_after(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(row.nbytes_after for row in self.rows)

    @property
    def ratio(self) -> float:
        """How many times smaller all stored tensors together became."""
        return self.nbytes_before / self.nbytes_after if self.nbytes_after else 1.0

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the compressed matrices, everything they store counted."""
        weights = sum(row.weights for row in self.compressed)
        return 8 * sum(row.nbytes_after for row in self.compressed) / weights if weights else 0.0

    @property
    def relative_error(self) -> float | None:
        """Relative squared error over all compressed weights; None if unknown."""
        return _mean_error(self.compressed)

    def groups(self) -> list[GroupSummary]:
        """Summarize the compressed rows by kind of layer, in the order of their appearance."""
        by_group: dict[str, list[TensorRow]] = {}
        for row in self.compressed:
            by_group.setdefault(row.group, []).append(row)
        return [_summarize(group, rows) for group, rows in by_group.items()]

    def summary_table(self) -> str:
        """Return the table that the command line prints."""
        lines: list[tuple[str, ...]] = [("layers", "count", "shape", "bits/weight", "rel. error")]
        for group in self.groups():
            shape = "mixed" if group.shape is None else "x".join(map(str, group.shape))
            error = _format_error(group.relative_error)
            bits = f"{group.bits_per_weight:.3f}"
            lines.append((group.group, str(group.count), shape, bits, error))
        kept = self.kept
        kept_size = f"{sum(row.nbytes_after for row in kept) / 1e6:.2f} MB"
        lines.append(("(kept as stored)", str(len(kept)), kept_size, "", ""))
        text = self.calibration_text()
        calibration = [f"calibration: {text}"] if text else []
        return "\n".join([*align(lines), "", self.total_line(), *calibration])

    def calibration_text(self) -> str:
        """Return how many matrices had which second moment; "" if none had any."""
        rows = [row.calibration_rows for row in self.compressed if row.second_moment]
        if not rows:
            return ""
        counts = Counter(row.second_moment for row in self.compressed)
        words = (("full", "with full second moments"), ("diagonal", "with mean squares"))
        parts = [f"{counts[kind]} matrices {text}" for kind, text in words if counts[kind]]
        if counts[""]:
            parts.append(f"{counts['']} without data")
        span = f"{min(rows)}" if min(rows) == max(rows) else f"{min(rows)} to {max(rows)}"
        return f"{', '.join(parts)}; {span} inputs each"

    def total_line(self) -> str:
        """Return the totals in one line."""
        return (
            f"total {self.nbytes_before / 1e6:.2f} MB -> {self.nbytes_after / 1e6:.2f} MB "
            f"({self.ratio:.2f} times smaller); compressed matrices: "
            f"{self.bits_per_weight:.3f} stored bits per weight, relative error "
            f"{_format_error(self.relative_error)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return totals, groups and rows as plain JSON types."""
        return {
            "nbytes_before": self.nbytes_before,
            "nbytes_after": self.nbytes_after,
            "ratio": self.ratio,
            "bits_per_weight": self.bits_per_weight,
            "relative_error": self.relative_error,
            "groups": [asdict(group) for group in self.groups()],
            "tensors": [row.to_dict() for row in self.rows],
            "warnings": list(self.warnings),
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)


def group_of(name: str) -> str:
    """Return the name with every number replaced by a star: layers of one kind share it."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _mean_error(rows: Iterable[TensorRow]) -> float | None:
    """Average by number of weights: matrices differ in size."""
    total, weights = 0.0, 0
    for row in rows:
        if row.relative_error is None:
            return None
        total += row.relative_error * row.weights
        weights += row.weights
    return total / weights if weights else None


def _summarize(group: str, rows: list[TensorRow]) -> GroupSummary:
    shapes = {row.shape for row in rows}
    bits = 8 * sum(row.nbytes_after for row in rows) / max(1, sum(row.weights for row in rows))
    shape = rows[0].shape if len(shapes) == 1 else None
    return GroupSummary(group, len(rows), shape, bits, _mean_error(rows))


def _format_error(error: float | None) -> str:
    return "unknown" if error is None else f"{error:.3g}"


def align(lines: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table whose first column is aligned left, the others right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    formatted = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells[0] = line[0].ljust(widths[0])
        formatted.append("  ".join(cells).rstrip())
    return formatted

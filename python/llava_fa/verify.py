"""Inspects and verifies a compressed folder without loading the model, one matrix at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from .dense_weights import DenseWeights, hash_entry
from .errors import LlavaFaError
from .matrix_spec import MatrixSpec
from .output import MANIFEST_NAME
from .packed_checkpoint import PackedCheckpoint, check_packed_tensors, unpack
from .report import CompressionReport, TensorRow
from .shards import TensorEntry, read_json

# A recorded error may differ from a measured one by the rounding of float32 sums.
_ERROR_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Problem:
    """Something wrong with one tensor (or, if ``tensor`` is "", with a whole file)."""

    tensor: str
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.tensor}: {self.message}" if self.tensor else self.message


@dataclass(frozen=True)
class Verification:
    """The result of :func:`verify_checkpoint`; given a source, ``report`` has measured errors."""

    problems: tuple[Problem, ...]
    report: CompressionReport
    hashed: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> str:
        """Return verdict, problems and report as a JSON object."""
        problems = [asdict(problem) for problem in self.problems]
        return json.dumps(
            {"ok": self.ok, "problems": problems, "report": self.report.to_dict()}, indent=2
        )


def inspect_checkpoint(folder: str | os.PathLike[str]) -> CompressionReport:
    """Read what a compressed folder holds; errors are those recorded when it was made.

    Examples
    --------
    >>> from llava_fa import inspect_checkpoint
    >>> print(inspect_checkpoint("small").summary_table())  # doctest: +SKIP
    """
    packed = PackedCheckpoint.open(folder)
    return CompressionReport(_rows(packed, _read_manifest(packed)))


def verify_checkpoint(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check every stored tensor against the format and the hashes recorded when it was made.

    Parameters
    ----------
    folder
        The compressed folder.
    source
        The dense checkpoint it was made from: then the error of every matrix is measured and
        compared with the recorded one, and every kept tensor must be equal to the source's.
    progress
        Called with (done, total) after every tensor or matrix.

    Returns
    -------
    Verification
        All problems found, each with its tensor.

    Raises
    ------
    CheckpointError, FormatError
        The folder cannot even be opened: no configuration, damaged headers, a future version.
    """
    packed = PackedCheckpoint.open(folder)
    manifest = _read_manifest(packed)
    dense = DenseWeights(source) if source is not None else None
    rows, problems = _rows(packed, manifest), list(_check_names(packed, manifest))
    measured = []
    for number, row in enumerate(rows, 1):
        found, checked = _check_row(packed, row, manifest, dense)
        problems += found
        measured.append(checked)
        if progress is not None:
            progress(number, len(rows))
    return Verification(tuple(problems), CompressionReport(tuple(measured)), bool(manifest))


def _read_manifest(packed: PackedCheckpoint) -> dict[str, Any]:
    """Return the recorded rows and hashes; empty if the file was not kept."""
    path = packed.checkpoint.folder / MANIFEST_NAME
    manifest = read_json(path) if path.exists() else {}
    return manifest if isinstance(manifest, dict) else {}


def _rows(packed: PackedCheckpoint, manifest: Mapping[str, Any]) -> tuple[TensorRow, ...]:
    """One row per matrix and per kept tensor, as recorded or, lacking that, as the headers say."""
    try:
        recorded = {row["name"]: TensorRow.from_dict(row) for row in manifest.get("rows", [])}
    except (KeyError, TypeError, ValueError, AttributeError):
        recorded = {}
    packed_names = packed.packed_names()
    rows = [_described(name, spec, recorded.get(name)) for name, spec in packed.specs.items()]
    for name, entry in packed.checkpoint.tensors.items():
        if name not in packed_names:
            size = entry.nbytes
            rows.append(TensorRow(name, entry.shape, entry.dtype, size, size))
    return tuple(rows)


def _described(name: str, spec: MatrixSpec, recorded: TensorRow | None) -> TensorRow:
    if recorded is not None and recorded.spec == spec:
        return recorded
    # Without a record the source's type is unknown; 16 bits is what checkpoints of today hold.
    shape = tuple(spec.shape)
    return TensorRow(name, shape, "BF16", 2 * math.prod(shape), spec.nbytes, spec)


def _check_names(packed: PackedCheckpoint, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Compare the names in the files with the recorded ones."""
    recorded = manifest.get("tensors")
    if not isinstance(recorded, dict):
        return
    present = packed.checkpoint.tensors
    for name in recorded.keys() - present.keys() - packed.packed_names():
        yield Problem(name, MANIFEST_NAME, "is recorded but in no file")
    for name in present.keys() - recorded.keys():
        yield Problem(name, present[name].file.name, "is not recorded; it was added afterwards")


def _check_row(
    packed: PackedCheckpoint,
    row: TensorRow,
    manifest: Mapping[str, Any],
    dense: DenseWeights | None,
) -> tuple[list[Problem], TensorRow]:
    """Check one matrix or kept tensor; return what is wrong and the row with the measured error."""
    hashes = manifest.get("tensors")
    hashes = hashes if isinstance(hashes, dict) else {}
    entries = packed.checkpoint.tensors
    if row.spec is None:
        entry = entries[row.name]
        digest = hash_entry(entry)
        problems = _hash_problems(entry, digest, hashes)
        if dense is not None and digest != dense.hash_of(row.name):
            problems.append(Problem(row.name, entry.file.name, "differs from the source's tensor"))
        return problems, row
    try:
        check_packed_tensors(row.name, row.spec, entries)
    except LlavaFaError as error:
        return [Problem(row.name, "", str(error))], row
    return _check_matrix(packed, row, hashes, dense)


def _check_matrix(
    packed: PackedCheckpoint,
    row: TensorRow,
    hashes: Mapping[str, str],
    dense: DenseWeights | None,
) -> tuple[list[Problem], TensorRow]:
    assert row.spec is not None
    problems, state = [], {}
    for suffix in row.spec.tensors():
        entry = packed.checkpoint.tensors[f"{row.name}.{suffix}"]
        state[suffix] = entry.read()
        problems += _hash_problems(entry, hash_entry(entry), hashes)
    try:
        matrix = unpack(row.name, row.spec, state)
    except LlavaFaError as error:
        file = packed.checkpoint.tensors[f"{row.name}.header"].file.name
        return [*problems, Problem(row.name, file, str(error))], row
    if dense is None:
        return problems, row
    measured, expected = matrix.relative_error(dense.weight(row.name)), row.relative_error
    if expected is not None and abs(measured - expected) > _ERROR_TOLERANCE * max(expected, 1e-6):
        message = f"relative error {measured:.6g} against the source, recorded was {expected:.6g}"
        problems.append(Problem(f"{row.name}.codes", "", message))
    return problems, replace(row, relative_error=measured)


def _hash_problems(entry: TensorEntry, digest: str, hashes: Mapping[str, str]) -> list[Problem]:
    if hashes.get(entry.name, digest) == digest:
        return []
    return [Problem(entry.name, entry.file.name, "its bytes are not those that were written")]

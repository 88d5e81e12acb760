"""The resumable state of a run, under ``OUTPUT/.llava_fa_partial/``, and the shards it grows into.

1. ``manifest.json`` says what was asked for: hashes of the source and all settings.
2. Each finished tensor is a part: ``NUMBER.part`` (bytes) and then ``NUMBER.json`` (its row of the
   report and where its tensors lie). A part counts once its JSON file exists.
3. When the next part would overfill the current shard, the shard is assembled from its parts into
   ``shard-NUMBER.safetensors``; then its record ``shard-NUMBER.json``; then the parts are deleted.
4. When all shards are there they move to their final names.

Every file appears atomically, so a run killed anywhere continues from the last of these states.
What ends up in a shard depends on the order and sizes of the tensors alone, so the bytes come out
equal. While a run lasts it holds an advisory lock on ``lock``, so that no second one works on the
same state; the lock ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import writer
from .errors import CheckpointError
from .report import TensorRow
from .shards import DTYPE_NAMES, SINGLE_NAME, TensorEntry

PARTIAL_NAME = ".llava_fa_partial"
_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Part:
    """One finished source tensor: its report row and the tensors to store for it."""

    row: TensorRow
    tensors: tuple[writer.StoredTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes to be stored."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @classmethod
    def unchanged(cls, entry: TensorEntry, note: str = "") -> Part:
        """A tensor kept as it is: its bytes are taken from the source when the shard is written."""
        row = TensorRow(entry.name, entry.shape, entry.dtype, entry.nbytes, entry.nbytes, note=note)
        return cls(row, (writer.StoredTensor(entry.name, entry.dtype, entry.shape, entry),))


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard: its hash, the hashes of its tensors, and the rows of its parts."""

    number: int
    sha256: str
    nbytes: int
    tensors: dict[str, str]
    rows: tuple[TensorRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "rows": [row.to_dict() for row in self.rows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ShardRecord:
        """Inverse of :meth:`to_dict`."""
        rows = tuple(TensorRow.from_dict(row) for row in values["rows"])
        return cls(**{**values, "rows": rows})


class PartialRun:
    """The state folder of one output folder."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / PARTIAL_NAME
        self._manifest_path = self.folder / "manifest.json"
        self._lock_path = self.folder / "lock"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes away from the output folder; leave no empty state folder behind.

        Raises
        ------
        CheckpointError
            Another process holds it.
        """
        descriptor = self._lock()
        try:
            yield
        finally:
            writer.remove([self._lock_path])  # still locked: whoever waits for it sees it go
            os.close(descriptor)
            with suppress(OSError):  # not empty: there is a state to resume, or another run began
                self.folder.rmdir()

    def _lock(self) -> int:
        """Lock the lock file; return its descriptor."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # another run just ended and took the folder with it
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise CheckpointError(
                    f"{self.output}: another process is writing to this folder (it holds "
                    f"{self._lock_path}); wait until it has ended, or choose another folder"
                ) from None
            # A run that ended between our two calls deleted the file that we locked.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self._lock_path.stat()):
                    return descriptor
            os.close(descriptor)

    def request(self) -> dict[str, Any] | None:
        """Return what the interrupted run was asked for; None if there is nothing to resume."""
        try:
            request = json.loads(self._manifest_path.read_bytes())
        except FileNotFoundError:
            return None
        return request if isinstance(request, dict) else None

    def start(self, request: Mapping[str, Any]) -> None:
        """Begin anew: from here on an interrupted run can be resumed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        writer.write_json(self._manifest_path, request)

    def clear(self) -> None:
        """Forget the state; the manifest goes first, so that a half-cleared state is no state."""
        writer.remove([self._manifest_path])
        if self.folder.exists():
            writer.remove(path for path in sorted(self.folder.iterdir()) if path != self._lock_path)

    # Parts

    def _part_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.part"

    def save_part(self, number: int, row: TensorRow, tensors: Mapping[str, torch.Tensor]) -> Part:
        """Store the tensors of one finished row; keys are their full names."""
        path = self._part_path(number)
        described, position = [], 0
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        with writer.atomic_file(path, row.name, size) as write:
            for name, tensor in tensors.items():
                data = writer.tensor_bytes(tensor)
                write(data)
                described.append([name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), position])
                position += len(data)
        values = {"row": row.to_dict(), "tensors": described, "nbytes": position}
        writer.write_json(path.with_suffix(".json"), values)
        return _part_from(path, values)

    def load_part(self, number: int) -> Part | None:
        """Return a part finished before the interruption, or None."""
        path = self._part_path(number)
        try:
            values = json.loads(path.with_suffix(".json").read_bytes())
            if path.stat().st_size != values["nbytes"]:
                return None
        except FileNotFoundError:
            return None
        return _part_from(path, values)

    # Shards

    def shard_path(self, number: int) -> Path:
        """Return where a finished shard waits for its final name."""
        return self.folder / f"shard-{number:05d}.safetensors"

    def finish_shard(self, number: int, parts: Sequence[Part], first: int) -> ShardRecord:
        """Assemble a shard from consecutive parts, of which the first has the number ``first``."""
        path = self.shard_path(number)
        tensors = [tensor for part in parts for tensor in part.tensors]
        sha256, hashes = writer.write_safetensors(path, tensors, _METADATA)
        rows = tuple(part.row for part in parts)
        record = ShardRecord(number, sha256, path.stat().st_size, hashes, rows)
        writer.write_json(path.with_suffix(".json"), record.to_dict())
        self._drop_parts(first, first + len(parts))
        return record

    def _drop_parts(self, begin: int, end: int) -> None:
        for number in range(begin, end):
            path = self._part_path(number)
            writer.remove(file for file in (path.with_suffix(".json"), path) if file.exists())

    def finished_shards(self) -> list[ShardRecord]:
        """Return the shards that an interrupted run finished and that are still intact."""
        paths = sorted(self.folder.glob("shard-*.json"))
        records: list[ShardRecord] = []
        for number, path in enumerate(paths, 1):
            record = ShardRecord.from_dict(json.loads(path.read_bytes()))
            places = (self.shard_path(number), self.output / shard_name(number, len(paths)))
            place = next((place for place in places if place.exists()), None)
            intact = place is not None and writer.hash_file(place) == record.sha256
            if record.number != number or not intact:
                break
            records.append(record)
        return records

    def publish_shards(self, records: Sequence[ShardRecord]) -> dict[str, str]:
        """Move the shards to their final names; return which tensor is in which file."""
        weight_map = {}
        for record in records:
            name = shard_name(record.number, len(records))
            if self.shard_path(record.number).exists():
                writer.move(self.shard_path(record.number), self.output / name)
            weight_map.update(dict.fromkeys(record.tensors, name))
        return weight_map


def shard_name(number: int, count: int) -> str:
    """Return the final file name of shard ``number`` (from 1) of ``count``."""
    return SINGLE_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _part_from(path: Path, values: Mapping[str, Any]) -> Part:
    tensors, ends = [], [tensor[3] for tensor in values["tensors"][1:]] + [values["nbytes"]]
    for (name, dtype, shape, begin), end in zip(values["tensors"], ends, strict=True):
        entry = TensorEntry(name, dtype, tuple(shape), path, begin, end - begin)
        tensors.append(writer.StoredTensor(name, dtype, tuple(shape), entry))
    return Part(TensorRow.from_dict(values["row"]), tuple(tensors))


def build_shards(
    run: PartialRun,
    finished: Sequence[ShardRecord],
    count: int,
    produce: Callable[[int], Part],
    max_shard_bytes: int,
    done: Callable[[TensorRow], None],
) -> list[ShardRecord]:
    """Produce the parts ``0 … count-1`` that are not there yet, and all shards.

    Parameters
    ----------
    finished
        The shards that can stay as they are, the first ones.
    produce
        Makes one part, by its number.
    done
        Told about every row, those from before an interruption too.
    """
    records = list(finished)
    first = 0
    for record in records:
        run._drop_parts(first, first + len(record.rows))
        first += len(record.rows)
        for row in record.rows:
            done(row)
    for begin, parts in _shard_batches(run, first, count, produce, max_shard_bytes, done):
        records.append(run.finish_shard(len(records) + 1, parts, begin))
    if not records:
        raise CheckpointError(f"{run.output}: the source holds no tensors")
    return records


def _shard_batches(
    run: PartialRun,
    first: int,
    count: int,
    produce: Callable[[int], Part],
    max_shard_bytes: int,
    done: Callable[[TensorRow], None],
) -> Iterator[tuple[int, list[Part]]]:
    """Group consecutive parts into shards of at most ``max_shard_bytes``, but at least one part."""
    pending: list[Part] = []
    for number in range(first, count):
        part = run.load_part(number) or produce(number)
        done(part.row)
        if pending and sum(p.nbytes for p in pending) + part.nbytes > max_shard_bytes:
            yield number - len(pending), pending
            pending = []
        pending.append(part)
    if pending:
        yield count - len(pending), pending

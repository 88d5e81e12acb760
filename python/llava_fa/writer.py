"""Writes files so that a reader never sees half of one, and safetensors files as a stream.

Every change of a file goes through the four functions at the top and nothing else: whoever wants to
see what an interruption at any moment leaves behind replaces those four.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from .errors import DiskFullError
from .shards import CHUNK_BYTES, DTYPES, TensorEntry

_TEMPORARY_SUFFIX = ".writing"


def _write(file: IO[bytes], data: bytes | memoryview) -> None:
    file.write(data)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    # The new name itself must survive a power cut too, not only the bytes behind it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


@contextmanager
def atomic_file(
    path: Path, content: str, nbytes: int
) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Give a function that appends bytes; the file appears under its name only when all are there.

    Parameters
    ----------
    content
        What is being written, in words, for the error's message.
    nbytes
        How much that will be, for the same.

    Raises
    ------
    DiskFullError
        What was finished before stays, so that the run can be resumed.
    """
    temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
    try:
        with open(temporary, "wb", buffering=0) as file:
            yield lambda data: _write_all(file, data)
            _sync(file)
        _replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Give the half-written file's space back: finished parts are what resuming needs.
        temporary.unlink(missing_ok=True)
        raise DiskFullError(
            f"{path}: the disk is full while writing {content}, which takes {_size(nbytes)} "
            f"({_size(shutil.disk_usage(path.parent).free)} free)"
        ) from error


def _write_all(file: IO[bytes], data: bytes | memoryview) -> None:
    for begin in range(0, len(data), CHUNK_BYTES):
        _write(file, data[begin : begin + CHUNK_BYTES])


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.3g} MB"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole small file atomically."""
    with atomic_file(path, path.name, len(data)) as write:
        write(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; equal values give equal bytes."""
    write_bytes(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file atomically, a block at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = source.stat().st_size
    with open(source, "rb") as file, atomic_file(path, f"a copy of {source}", size) as write:
        while block := file.read(CHUNK_BYTES):
            write(block)


def move(source: Path, path: Path) -> None:
    """Give a file its final name, in the same file system."""
    _replace(source, path)


def remove(paths: Iterable[Path]) -> None:
    """Delete files that may or may not exist."""
    for path in paths:
        _remove(path)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a CPU tensor in row-major order, without a copy if it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


@dataclass(frozen=True)
class StoredTensor:
    """One tensor to be written: its description, and ``entry``: where its bytes lie now."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    entry: TensorEntry

    @property
    def nbytes(self) -> int:
        """Bytes to be written."""
        return self.entry.nbytes


def write_safetensors(
    path: Path, tensors: Sequence[StoredTensor], metadata: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """Assemble a safetensors file from bytes that lie in other files, a block at a time.

    Returns
    -------
    tuple
        The SHA-256 of the file and those of the tensors' bytes, by name.
    """
    # Wide types first keeps every tensor aligned to its type, which memory-mapping readers need.
    ordered = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    total, hashes = hashlib.sha256(), {}
    header = header_bytes(ordered, metadata)
    nbytes = len(header) + sum(tensor.nbytes for tensor in ordered)
    with atomic_file(path, f"a shard of {len(ordered)} tensors", nbytes) as write:

        def emit(data: bytes) -> None:
            total.update(data)
            write(data)

        emit(header)
        for tensor in ordered:
            digest = hashlib.sha256()
            for chunk in tensor.entry.chunks():
                digest.update(chunk)
                emit(chunk)
            hashes[tensor.name] = digest.hexdigest()
    return total.hexdigest(), hashes


def header_bytes(
    tensors: Sequence[StoredTensor | TensorEntry], metadata: Mapping[str, str]
) -> bytes:
    """Return the beginning of a safetensors file in which the tensors' bytes follow in order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def hash_file(path: Path, done: Callable[[int], object] | None = None) -> str:
    """Return the SHA-256 of a file, read a block at a time; ``done`` is told the size of each."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
            if done is not None:
                done(len(block))
    return digest.hexdigest()

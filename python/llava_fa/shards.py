"""Reads safetensors checkpoints tensor by tensor, trusting nothing the headers say.

A tensor is read straight into a buffer of its own, never through a memory map, so the
resident memory is that of the tensors the caller holds and not of the whole file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError, MissingFileError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
CHUNK_BYTES = 4 << 20

# The safetensors specification bounds the header, so that a hostile length cannot exhaust memory.
_MAX_HEADER_BYTES = 100_000_000

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: ``offset`` counts from the beginning of ``file``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that torch calls so."""
        return DTYPES[self.dtype]

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the stored bytes in order, at most ``chunk_bytes`` at a time."""
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            left = self.nbytes
            while left:
                block = file.read(min(left, chunk_bytes))
                if not block:
                    raise CheckpointError(_truncated(self))
                left -= len(block)
                yield block

    def read(self) -> torch.Tensor:
        """Read the tensor into memory of its own."""
        buffer = torch.empty(self.nbytes, dtype=torch.uint8)
        view = buffer.numpy().data
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.offset)
            done = 0
            while done < self.nbytes:
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(_truncated(self))
                done += count
        return buffer.view(self.torch_dtype).reshape(self.shape)


def _truncated(entry: TensorEntry) -> str:
    return (
        f"{entry.file}: ended while reading {entry.nbytes} bytes of {entry.name} at offset "
        f"{entry.offset}; the file changed or is damaged, fetch it again"
    )


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder: its configuration and where each of its tensors lies.

    ``tensors`` is ordered as the bytes are: by file, then by offset.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    files: tuple[Path, ...]

    @classmethod
    def open(cls, source: str | os.PathLike[str]) -> Checkpoint:
        """Open a folder or, if no such folder exists, a hub id; check every header.

        Raises
        ------
        MissingFileError
            The folder, its ``config.json`` or a file that the index names does not exist.
        CheckpointError
            Anything else is wrong: a pickle checkpoint, a truncated or inconsistent file.
        """
        folder = resolve_source(source)
        config = read_json(folder / "config.json")
        if not isinstance(config, dict):
            raise CheckpointError(f"{folder / 'config.json'}: expected a JSON object")
        expected = _expected_tensors(folder)
        tensors: dict[str, TensorEntry] = {}
        for file, names in expected.items():
            entries = read_header(file)
            _compare_with_index(file, entries, names)
            for name, entry in entries.items():
                if name in tensors:
                    raise CheckpointError(f"tensor {name} is in {tensors[name].file} and in {file}")
                tensors[name] = entry
        return cls(folder, config, tensors, tuple(expected))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())


def resolve_source(source: str | os.PathLike[str]) -> Path:
    """Return the local folder of a checkpoint, downloading a hub id's files if needed."""
    path = Path(source)
    if path.is_dir():
        return path
    text = os.fspath(source)
    if path.exists():
        raise CheckpointError(f"{text}: expected a folder with config.json and safetensors files")
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise MissingFileError(f"{text}: no such folder (a hub id has the form organisation/name)")
    return _download(text)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many unrelated classes
        raise MissingFileError(
            f"{hub_id}: neither a local folder nor a checkpoint that the hub gives us "
            f"({type(error).__name__}: {error}); check the name, the network and your access token"
        ) from error


def read_json(path: Path) -> Any:
    """Parse a JSON file, with errors that name it."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; is this a Hugging Face folder?") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None


def _expected_tensors(folder: Path) -> dict[Path, list[str] | None]:
    """Map every weight file to the tensors the index promises in it (None: no index)."""
    # In this order, as transformers does, if a folder holds both.
    if (folder / SINGLE_NAME).exists():
        return {folder / SINGLE_NAME: None}
    if (folder / INDEX_NAME).exists():
        return _read_index(folder / INDEX_NAME)
    loose = sorted(folder.glob("*.safetensors"))
    if len(loose) == 1:
        return {loose[0]: None}
    if loose:
        raise MissingFileError(
            f"{folder}: {len(loose)} safetensors files but no {INDEX_NAME} that says which belong "
            "to the model; fetch the index too"
        )
    raise _no_weights(folder)


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if not pickles:
        return MissingFileError(f"{folder}: expected {SINGLE_NAME} or {INDEX_NAME}, found neither")
    return CheckpointError(
        f"{folder}: only pickle weights ({', '.join(pickles[:3])}); unpickling runs code of "
        "whoever wrote the file, so they are refused. If you trust the author, convert once: "
        "AutoModelForImageTextToText.from_pretrained(SOURCE).save_pretrained(NEW_FOLDER) "
        "(transformers writes safetensors), then compress NEW_FOLDER"
    )


def _read_index(path: Path) -> dict[Path, list[str] | None]:
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: expected an object 'weight_map' of tensor names to files")
    files: dict[Path, list[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(
                f"{path}: tensor {name} is said to be in {file!r}; expected the name of a file in "
                "the same folder"
            )
        if not file.endswith(".safetensors"):
            raise CheckpointError(f"{path}: names {file}; expected a .safetensors file")
        names = files.setdefault(path.parent / file, [])
        assert names is not None
        names.append(name)
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise MissingFileError(
            f"{path}: names {len(missing)} file(s) that do not exist: {', '.join(missing[:5])}; "
            "the download is incomplete, fetch them again"
        )
    return dict(sorted(files.items()))


def _compare_with_index(
    file: Path, entries: Mapping[str, TensorEntry], names: Iterable[str] | None
) -> None:
    if names is None:
        return
    missing = [name for name in names if name not in entries]
    if missing:
        raise CheckpointError(
            f"{file}: the index promises {len(missing)} tensor(s) that are not in it: "
            f"{', '.join(missing[:5])}; index and shard are of different versions"
        )


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Parse and validate the header of one safetensors file; tensors in the order of their bytes.

    Raises
    ------
    CheckpointError
        The header is damaged or contradicts the file: the message names file, tensor and field.
    """
    header, base = _read_header(file)
    header.pop("__metadata__", None)
    entries = [_parse_entry(file, name, field, base) for name, field in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_layout(file, entries, base, file.stat().st_size)
    return {entry.name: entry for entry in entries}


def read_metadata(file: Path) -> dict[str, str]:
    """Return the free texts in the header of a safetensors file; empty if it has none."""
    metadata = _read_header(file)[0].get("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise CheckpointError(f"{file}: __metadata__ is not an object of texts; fetch it again")
    return dict(metadata)


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header as parsed JSON, and where the tensors' bytes begin."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{file}: header of {length} bytes does not fit into a file of {size} bytes; the "
                "file is truncated or not safetensors, fetch it again"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise CheckpointError(f"{file}: header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: header is not a JSON object")
    return header, 8 + length


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key occurs twice")
    return keys


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _parse_entry(file: Path, name: str, field: Any, base: int) -> TensorEntry:
    where = f"{file}: tensor {name}"
    if not isinstance(field, dict):
        raise CheckpointError(f"{where}: header entry is not an object")
    dtype, shape, offsets = field.get("dtype"), field.get("shape"), field.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise CheckpointError(f"{where}: shape {shape!r} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where}: data_offsets {offsets!r} is not a pair of offsets")
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise CheckpointError(
            f"{where}: shape {shape} of {dtype} takes {nbytes} bytes, "
            f"data_offsets give {end - begin}"
        )
    return TensorEntry(name, dtype, tuple(shape), file, base + begin, nbytes)


def _check_layout(file: Path, entries: list[TensorEntry], base: int, size: int) -> None:
    """The tensors must tile the rest of the file: no hole, no overlap, nothing beyond the end."""
    position = base
    for entry in entries:
        if entry.offset != position:
            kind = "overlaps the tensor before it" if entry.offset < position else "follows a hole"
            raise CheckpointError(
                f"{file}: tensor {entry.name} {kind} (offset {entry.offset}, expected {position})"
            )
        position += entry.nbytes
    if position != size:
        raise CheckpointError(
            f"{file}: the header describes {position} bytes, the file has {size}; it is "
            f"{'truncated' if size < position else 'too long'}, fetch it again"
        )

"""How many bytes safetensors files will take, headers and all, before they are written."""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch

from .matrix_spec import MatrixSpec
from .shards import DTYPE_NAMES, TensorEntry

# Per file: the length, braces and metadata of the header, and its padding to a multiple of 8.
_FILE_BYTES = 8 + len('{"__metadata__":{"format":"pt"}}') + 7


def tensor_bytes(name: str, dtype: str, shape: Iterable[int], nbytes: int, digits: int) -> int:
    """Bytes of one tensor and its entry in the header, whose offsets have at most ``digits``."""
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]}
    key = json.dumps(name, ensure_ascii=False)
    text = f",{key}:{json.dumps(entry, separators=(',', ':'))}"
    return nbytes + len(text.encode()) + 2 * (digits - 1)


def matrix_bytes(name: str, spec: MatrixSpec, digits: int) -> int:
    """Bytes of all tensors of a compressed matrix and their entries in the header, at most."""
    return sum(
        tensor_bytes(f"{name}.{suffix}", DTYPE_NAMES[dtype], shape, _nbytes(dtype, shape), digits)
        for suffix, (dtype, shape) in spec.tensors().items()
    )


def kept_bytes(entries: Iterable[TensorEntry], digits: int) -> int:
    """Bytes of tensors that stay as they are and their entries in the header, at most."""
    return sum(tensor_bytes(e.name, e.dtype, e.shape, e.nbytes, digits) for e in entries)


def file_overhead(total: int, max_shard_bytes: int) -> int:
    """Bytes that files add to what is in them, at most: two neighbours exceed one file's size."""
    return _FILE_BYTES * (2 * total // max_shard_bytes + 1)


def _nbytes(dtype: torch.dtype, shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count * dtype.itemsize

"""Turns a compressed checkpoint back into a plain dense one, matrix by matrix."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError
from .model_card import plain_card
from .output import MANIFEST_NAME, check_empty, check_places, clear_output, publish
from .packed_checkpoint import PackedCheckpoint
from .partial import Part, PartialRun, build_shards
from .report import CompressionReport, TensorRow
from .shards import DTYPE_NAMES, DTYPES, read_json

_SHARD_BYTES = 5 * 10**9


def decompress_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> CompressionReport:
    """Decode every matrix of a compressed checkpoint and write an ordinary dense checkpoint.

    Parameters
    ----------
    source
        Folder that :func:`compress_checkpoint` wrote.
    output
        Folder to write; must be empty unless ``overwrite``.
    dtype
        Type of all floating-point tensors, e.g. ``torch.float32`` or ``"float32"``. If None,
        matrices get the type they had before the compression, everything else stays as it is.
    overwrite
        Replace a checkpoint in ``output``. Deletes only files that this function would write.
    progress
        Show a progress bar on stderr.
    """
    wanted = _parse_dtype(dtype)
    packed = PackedCheckpoint.open(source)
    checkpoint, folder = packed.checkpoint, Path(output)
    check_places(checkpoint.folder, folder)
    works = packed.works()
    dtypes = _original_dtypes(packed)

    def produce(number: int) -> Part:
        matrix, name = works[number]
        if matrix:
            return _decoded(run, packed, number, name, wanted or dtypes[name])
        return _converted(run, packed, number, name, wanted)

    config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    if wanted is not None:
        config["dtype"] = str(wanted).removeprefix("torch.")
        config.pop("torch_dtype", None)
    card = plain_card(checkpoint.folder) or None
    from tqdm import tqdm

    run = PartialRun(folder)
    with run.held():
        if overwrite:
            clear_output(checkpoint.folder, folder)
        check_empty(folder)
        run.clear()
        run.start({"decompress": True})
        with tqdm(
            total=len(works), unit="tensor", desc="decompressing", disable=not progress
        ) as bar:
            records = build_shards(
                run,
                run.finished_shards(),
                len(works),
                produce,
                _SHARD_BYTES,
                lambda row: _step(bar),
            )
        publish(run, checkpoint, records, config, None, card)
    return CompressionReport(tuple(row for record in records for row in record.rows))


def _step(bar: Any) -> None:
    bar.update(1)


def _parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    value = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None:
        return None
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch dtype or its name, got {dtype!r}")
    return value


def _original_dtypes(packed: PackedCheckpoint) -> Mapping[str, torch.dtype]:
    """The types before the compression: by the manifest if it is there, else the model's."""
    config = packed.checkpoint.config
    text = config.get("dtype") or config.get("torch_dtype") or "float32"
    default = getattr(torch, str(text), torch.float32)
    dtypes = dict.fromkeys(packed.specs, default)
    path = packed.checkpoint.folder / MANIFEST_NAME
    if path.exists():
        manifest = read_json(path)
        for row in manifest.get("rows", []):
            if row.get("name") in dtypes and row.get("dtype") in DTYPES:
                dtypes[row["name"]] = DTYPES[row["dtype"]]
    return dtypes


def _decoded(
    run: PartialRun, packed: PackedCheckpoint, number: int, name: str, dtype: torch.dtype
) -> Part:
    matrix = packed.read_matrix(name)
    weight = matrix.dense().to(dtype)
    if not torch.isfinite(weight).all():
        raise CheckpointError(
            f"matrix {name} decodes to values beyond {dtype}; choose a wider dtype"
        )
    return _saved(run, number, f"{name}.weight", weight, matrix.nbytes)


def _converted(
    run: PartialRun, packed: PackedCheckpoint, number: int, name: str, dtype: torch.dtype | None
) -> Part:
    entry = packed.checkpoint.tensors[name]
    if dtype in (None, entry.torch_dtype) or not entry.torch_dtype.is_floating_point:
        return Part.unchanged(entry)
    return _saved(run, number, name, entry.read().to(dtype), entry.nbytes)


def _saved(
    run: PartialRun, number: int, name: str, tensor: torch.Tensor, nbytes_before: int
) -> Part:
    size = tensor.numel() * tensor.element_size()
    shape = tuple(tensor.shape)
    row = TensorRow(name, shape, DTYPE_NAMES[tensor.dtype], nbytes_before, size)
    return run.save_part(number, row, {name: tensor})

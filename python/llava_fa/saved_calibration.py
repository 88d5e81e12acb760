"""Second moments in a file of their own, for later runs with other settings.

A safetensors file with one tensor per distinct input, named after the first layer that receives it.
Its metadata say from which model and data the moments were collected and which layers share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import writer
from .errors import CheckpointError, NonFiniteError
from .moments import LayerMoment, MomentFolder
from .shards import TensorEntry, read_header, read_metadata
from .trace import Trace

_FORMAT = "llava_fa_calibration"
_VERSION = "1"


def model_fingerprint(source: Mapping[str, str]) -> str:
    """Return a hash of a checkpoint, from the hashes of its configuration and weight files."""
    return hashlib.sha256(json.dumps(dict(source), sort_keys=True).encode()).hexdigest()


def check_target(path: Path, model: str, data: str, *, overwrite: bool) -> None:
    """Refuse to replace a file unless it holds moments of this model and these data."""
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: no such folder {path.parent}; create it first")
    if overwrite or not path.exists():
        return
    metadata = _known_metadata(path)
    if [metadata.get(key) for key in ("model", "data")] == [model, data]:
        return
    raise CheckpointError(
        f"{path}: exists and is no calibration of this model with these data; choose another "
        "name, or pass overwrite=True (--overwrite) to replace it"
    )


def is_saved(path: Path, model: str, data: str, run: str) -> bool:
    """Whether this very run, before an interruption, has written the file already."""
    metadata = _known_metadata(path)
    return [metadata.get(key) for key in ("model", "data", "run")] == [model, data, run]


def _known_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a calibration; none if the file is something else, or not there."""
    try:
        return read_metadata(path) if path.is_file() and read_header(path) else {}
    except CheckpointError:
        return {}


def save(path: Path, trace: Trace, moments: MomentFolder, model: str, data: str, run: str) -> None:
    """Assemble the file from the moments that the run keeps on disk, a block at a time.

    Parameters
    ----------
    trace, moments
        The structure that was found, and where the moments of its inputs lie.
    model, data, run
        Hashes of the checkpoint, of the examples and of the run's settings.
    """
    from . import __version__

    inputs = {i.leader: i for i in trace.inputs}
    tensors, rows = [], {}
    for number, leader in enumerate(inputs):
        entry = moments.entry(number)
        tensors.append(writer.StoredTensor(leader, entry.dtype, entry.shape, entry))
        rows[leader] = moments.rows(number)
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "producer": f"llava-fa {__version__}",
        "model": model,
        "data": data,
        "run": run,
        "order": "one-pass",
        "rows": json.dumps(rows),
        "layers": json.dumps({layer: i.leader for i in inputs.values() for layer in i.layers}),
    }
    writer.write_safetensors(path, tensors, metadata)


class SavedCalibration:
    """Second moments read from a file, checked like anything that comes from outside.

    Parameters
    ----------
    path
        The file.
    model
        :func:`model_fingerprint` of the checkpoint to be compressed.
    sizes, full
        For the layers to be compressed: their number of input features, and whether the full
        second moment is wanted.

    Raises
    ------
    CheckpointError
        The file is damaged, no calibration, of another model, or lacks what is wanted.
    """

    def __init__(
        self, path: Path, model: str, sizes: Mapping[str, int], full: Mapping[str, bool]
    ) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such calibration file")
        self.path = path
        self._metadata = read_metadata(path)
        self._check_origin(model)
        self._entries = read_header(path)
        self._rows = self._table("rows", int)
        self._layers = self._table("layers", str)
        self._check_tables()
        self._full = full
        for layer, size in sizes.items():
            if layer in self._layers:
                self._check_entry(layer, self._entries[self._layers[layer]], size)
        self.unseen = tuple(layer for layer in sizes if layer not in self._layers)

    @property
    def data(self) -> str:
        """Hash of the examples that were used."""
        return self._metadata.get("data", "")

    def find(self, layer: str) -> LayerMoment | None:
        """Return a layer's moment, or None if it saw no data."""
        name = self._layers.get(layer)
        if name is None:
            return None
        values = self._entries[name].read()
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError(f"{self.path}: tensor {name} holds NaN or infinity")
        return LayerMoment(values, self._rows[name]).reduced(self._full[layer])

    def _check_origin(self, model: str) -> None:
        found = self._metadata
        if found.get("format") != _FORMAT:
            raise CheckpointError(
                f"{self.path}: not a calibration of llava-fa; expected a file that "
                "--save-calibration wrote"
            )
        if found.get("version") != _VERSION:
            raise CheckpointError(
                f"{self.path}: calibration of version {found.get('version')!r}, this llava-fa "
                f"reads version {_VERSION!r}; collect it again, or upgrade llava-fa"
            )
        if found.get("model") != model:
            raise CheckpointError(
                f"{self.path}: was collected from another model than the one to be compressed "
                "(their config.json or weight files differ); collect it again from this one"
            )
        if found.get("order") != "one-pass":
            raise CheckpointError(
                f"{self.path}: was collected in {found.get('order')!r} order, which depends on the "
                "compressed layers; collect it again in one-pass order"
            )

    def _table(self, key: str, kind: type) -> dict[str, Any]:
        try:
            table = json.loads(self._metadata.get(key, ""))
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict) or not all(type(value) is kind for value in table.values()):
            raise CheckpointError(f"{self.path}: metadata {key!r} are damaged; collect it again")
        return table

    def _check_tables(self) -> None:
        names = self._entries.keys()
        known = set(self._layers.values()) <= names and self._rows.keys() == names
        if not known or any(rows < 1 for rows in self._rows.values()):
            raise CheckpointError(
                f"{self.path}: its metadata contradict its tensors; it is damaged, collect it again"
            )

    def _check_entry(self, layer: str, entry: TensorEntry, size: int) -> None:
        """Accept (n, n) F32, or (n,) F64 where the mean squares are enough."""
        kind = (entry.dtype, entry.shape)
        if kind == ("F32", (size, size)) or (kind == ("F64", (size,)) and not self._full[layer]):
            return
        if kind == ("F64", (size,)):
            raise CheckpointError(
                f"{self.path}: holds only mean squares for {layer}; collect it again with "
                "calibration='hessian', or compress with calibration='diagonal' (--calibration)"
            )
        raise CheckpointError(
            f"{self.path}: tensor {entry.name} is {entry.dtype} {list(entry.shape)}, but {layer} "
            f"has {size} inputs; expected F32 [{size}, {size}] or F64 [{size}]"
        )

"""Arrays on disk under a hash of all that they depend on, so that a long run can continue."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

CACHE = Path(__file__).resolve().parent / "cache"
Arrays = dict[str, npt.NDArray[Any]]


class Store:
    """A folder of results; with ``None`` nothing is kept.

    Parameters
    ----------
    folder : Path or None
        Made when something is first put into it.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: str) -> Arrays | None:
        """Return what was put under the key, or None."""
        if self.folder is None or not (path := self._path(key)).exists():
            return None
        with np.load(path, allow_pickle=False) as found:
            return dict(found)

    def put(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep arrays; a run that is stopped meanwhile leaves no half file."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.npz"


def key_of(**parts: Any) -> str:
    """Hash settings (JSON types) to a key; different names or values give another one."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def hash_of_files(paths: Iterable[Path]) -> str:
    """Hash the names and contents of files: the code that a result depends on."""
    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

"""The weights of a dense checkpoint under the names that compressed ones have."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import torch

from .errors import CheckpointError
from .matrix_spec import MatrixSpec
from .modules import build_meta_model, map_layers
from .shards import Checkpoint, TensorEntry


class DenseWeights:
    """The source's weights by canonical module name."""

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self.checkpoint = Checkpoint.open(source)
        layout = map_layers(self.checkpoint, build_meta_model(self.checkpoint))
        self._tensors = {name: layer.tensor for name, layer in layout.layers.items()}

    def weight(self, module: str) -> torch.Tensor:
        """Read the weight of a linear layer, (m, n)."""
        return self._entry(module).read()

    def hash_of(self, name: str) -> str | None:
        """Return the SHA-256 of a tensor's bytes; None if there is no such tensor."""
        entry = self.checkpoint.tensors.get(name)
        return hash_entry(entry) if entry else None

    def check_shapes(self, specs: Mapping[str, MatrixSpec]) -> None:
        """Check that there is a weight of the same shape for every matrix.

        Raises
        ------
        CheckpointError
            Names the first layer that is not there or differs.
        """
        for module, spec in specs.items():
            entry = self._entry(module)
            if entry.shape != tuple(spec.shape):
                raise CheckpointError(
                    f"{entry.file}: tensor {entry.name} has shape {list(entry.shape)}, the "
                    f"compressed {module} {list(spec.shape)}; give the model that was compressed"
                )

    def _entry(self, module: str) -> TensorEntry:
        tensor = self._tensors.get(module)
        if not tensor:
            raise CheckpointError(
                f"{self.checkpoint.folder}: has no weight of a linear layer {module}; give the "
                "model that was compressed"
            )
        return self.checkpoint.tensors[tensor]


def hash_entry(entry: TensorEntry) -> str:
    """Return the SHA-256 of a stored tensor's bytes."""
    digest = hashlib.sha256()
    for chunk in entry.chunks():
        digest.update(chunk)
    return digest.hexdigest()

"""Reads the compressed layers of a checkpoint past transformers, which takes its time per tensor.

While transformers reads what is dense, each compressed layer's place in the model is kept by a
module with nothing but the bias. Then the layer is built around its stored tensors, which are
mapped into memory: like dense weights they are read from the files when they are first used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .matrix_spec import MatrixSpec
from .nn import FourierLinear, PackedWeight
from .shards import TensorEntry


class ReservedPlace(nn.Module):
    """Where a layer comes; its bias is read by transformers, as of any layer."""

    # Nothing of it may be initialized at random; what was not read is an error.
    _is_hf_initialized = True

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> PackedWeight:
        """Marked as read, for modules that initialize the linear layers inside them."""
        return PackedWeight(torch.empty(0, dtype=torch.uint8, device="meta"))


class LayersOfFiles:
    """The compressed layers of a checkpoint's files, to be put into a model on the CPU.

    Parameters
    ----------
    entries
        Every tensor of the layers by name, checked.
    """

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self._entries = entries
        self._reserved: dict[str, tuple[str, MatrixSpec]] = {}

    def reserve(self, model: Any, name: str, stored: str, spec: MatrixSpec) -> None:
        """Keep the place of a linear layer whose tensors are stored under another name, maybe."""
        self._reserved[name] = stored, spec
        model.set_submodule(name, ReservedPlace(model.get_submodule(name).bias))

    def ignored(self) -> set[str]:
        """Return a pattern of the tensors that transformers is to leave alone."""
        suffixes = {suffix for _, spec in self._reserved.values() for suffix in spec.tensors()}
        return {rf"\.({'|'.join(sorted(suffixes))})$"} if suffixes else set()

    def layers(self, model: Any) -> Iterator[tuple[str, FourierLinear]]:
        """Build one layer after the other around its tensors and the bias that was read."""
        opened: dict[Path, Any] = {}

        def mapped(name: str) -> Tensor:
            file = self._entries[name].file
            if file not in opened:
                opened[file] = safe_open(file, framework="pt")
            tensor: Any = opened[file].get_tensor(name)
            tensor._is_hf_initialized = True  # as transformers marks what it read
            return cast(Tensor, tensor)

        for name, (stored, spec) in self._reserved.items():
            tensors = {suffix: mapped(f"{stored}.{suffix}") for suffix in spec.tensors()}
            yield name, FourierLinear.around(spec, tensors, model.get_submodule(name).bias)

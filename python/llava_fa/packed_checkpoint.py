"""Reads a compressed checkpoint's description and its matrices, without building the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import CheckpointError, FormatError
from .matrix import CompressedMatrix
from .matrix_spec import MatrixSpec
from .shards import DTYPE_NAMES, Checkpoint, TensorEntry

QUANT_METHOD = "llava_fa"
FORMAT_VERSION = 3


@dataclass(frozen=True)
class PackedCheckpoint:
    """A folder written by ``compress_checkpoint``: ``specs`` maps module names to descriptions."""

    checkpoint: Checkpoint
    specs: dict[str, MatrixSpec]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> PackedCheckpoint:
        """Open a compressed folder and check its description."""
        checkpoint = Checkpoint.open(folder)
        quantization = checkpoint.config.get("quantization_config")
        where = checkpoint.folder / "config.json"
        if not isinstance(quantization, dict) or quantization.get("quant_method") != QUANT_METHOD:
            raise CheckpointError(
                f"{where}: expected a quantization_config with quant_method {QUANT_METHOD!r}; this "
                "is not a checkpoint that llava-fa compressed"
            )
        check_version(quantization.get("format_version"), str(where))
        specs = parse_specs(quantization.get("modules"), str(where))
        check_described(specs, checkpoint.tensors)
        return cls(checkpoint, specs)

    def read_matrix(self, name: str) -> CompressedMatrix:
        """Read one matrix and check it against its description."""
        entries = self.checkpoint.tensors
        check_packed_tensors(name, self.specs[name], entries)
        state = {
            suffix: entries[f"{name}.{suffix}"].read() for suffix in self.specs[name].tensors()
        }
        return unpack(name, self.specs[name], state)

    def packed_names(self) -> set[str]:
        """Return the full names of all tensors that belong to compressed matrices."""
        return {
            f"{name}.{suffix}" for name, spec in self.specs.items() for suffix in spec.tensors()
        }

    def works(self) -> list[tuple[bool, str]]:
        """List (is a matrix, name) in the order of the stored bytes: what a rewriting goes through.

        A kept tensor is on its own; a matrix stands where the first of its tensors does.
        """
        owner = {
            f"{name}.{suffix}": name for name in self.specs for suffix in self.specs[name].tensors()
        }
        works: dict[tuple[bool, str], None] = {}
        for tensor in self.checkpoint.tensors:
            works[(tensor in owner, owner.get(tensor, tensor))] = None
        works.update({(True, name): None for name in self.specs})
        return list(works)


def check_version(version: Any, where: str) -> None:
    """Refuse files of a format that this library does not know."""
    if version == FORMAT_VERSION:
        return
    remedy = "the file is damaged or not ours"
    if isinstance(version, int) and version > 0:
        remedy = "upgrade llava-fa" if version > FORMAT_VERSION else "compress the model again"
    raise FormatError(
        f"{where}: format version {version!r}, this llava-fa reads {FORMAT_VERSION}; {remedy}"
    )


def parse_specs(modules: Any, where: str) -> dict[str, MatrixSpec]:
    """Parse the ``modules`` of a ``quantization_config``."""
    if not isinstance(modules, dict) or not modules:
        raise FormatError(
            f"{where}: expected 'modules', the compressed layers; got {modules!r:.60}"
        )
    specs = {}
    for name, values in modules.items():
        try:
            specs[name] = MatrixSpec.from_dict(values)
        except (FormatError, TypeError, ValueError, KeyError) as error:
            raise FormatError(f"{where}: module {name}: {error}") from error
    return specs


def check_packed_tensors(name: str, spec: MatrixSpec, entries: Mapping[str, TensorEntry]) -> None:
    """Check that every tensor of a matrix is stored, with the type and shape its spec implies."""
    for suffix, (dtype, shape) in spec.tensors().items():
        entry = entries.get(f"{name}.{suffix}")
        if entry is None:
            raise FormatError(f"tensor {name}.{suffix} is missing; the checkpoint is incomplete")
        if entry.dtype != DTYPE_NAMES[dtype] or entry.shape != tuple(shape):
            raise FormatError(
                f"{entry.file}: tensor {entry.name}: expected {DTYPE_NAMES[dtype]} {list(shape)}, "
                f"got {entry.dtype} {list(entry.shape)}; config.json and the file disagree"
            )


def check_described(specs: Mapping[str, MatrixSpec], entries: Mapping[str, TensorEntry]) -> None:
    """Check that no matrix is stored of which ``config.json`` says nothing."""
    for entry in entries.values():
        name, _, suffix = entry.name.rpartition(".")
        if suffix == "codes" and f"{name}.header" in entries and name not in specs:
            raise FormatError(
                f"{entry.file}: the layer {name} is stored compressed, but config.json does not "
                "describe it; put back the config.json that was written with this file"
            )


def unpack(
    name: str, spec: MatrixSpec, state: Mapping[str, torch.Tensor], *, in_place: bool = False
) -> CompressedMatrix:
    """Build a matrix from its stored tensors; its own header must agree with the configuration."""
    try:
        matrix = CompressedMatrix.from_state_dict(state, in_place=in_place)
    except FormatError as error:
        raise FormatError(f"matrix {name}: {error}") from error
    if matrix.spec != spec:
        raise FormatError(
            f"tensor {name}.header says {matrix.spec}, config.json says {spec}; one of them is "
            "damaged"
        )
    return matrix

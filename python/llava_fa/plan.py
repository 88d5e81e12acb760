"""Decides what happens to every tensor of a checkpoint, before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .bit_plan import BitPlan
from .config import CompressionConfig
from .errors import CheckpointError, PlanError
from .modules import build_meta_model, check_loadable, map_layers
from .packed_checkpoint import QUANT_METHOD
from .recipe import Recipe
from .shards import Checkpoint, TensorEntry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHT_DTYPES = frozenset(("F64", "F32", "F16", "BF16"))


@dataclass(frozen=True)
class Plan:
    """What happens to every tensor: ``matrices`` maps tensor names to (module name, settings).

    ``layers`` are the linear layers' module names; ``limits`` the bytes that a matrix may take, by
    module name, if a budget sets them.
    """

    entries: tuple[TensorEntry, ...]
    matrices: dict[str, tuple[str, CompressionConfig]]
    warnings: tuple[str, ...]
    layers: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)

    def within(self, bit_plan: BitPlan) -> Plan:
        """Return this plan with the settings of a bit plan, and its bytes as limits."""
        planned = {matrix.name: matrix for matrix in bit_plan.matrices}
        matrices = {
            tensor: (name, planned[name].config)
            for tensor, (name, _) in self.matrices.items()
            if name in planned
        }
        limits = {matrix.name: matrix.nbytes for matrix in bit_plan.matrices}
        return replace(self, matrices=matrices, limits=limits)


def make_plan(
    checkpoint: Checkpoint,
    config: CompressionConfig,
    recipe: Recipe | BitPlan,
    model: PreTrainedModel | None = None,
) -> Plan:
    """Decide about every tensor, and find every mistake that can be found before the work.

    The model is that of the checkpoint, unless another class that is to load it is given.
    """
    _check_dense(checkpoint)
    model = build_meta_model(checkpoint) if model is None else model
    layout = map_layers(checkpoint, model)
    matrices = {}
    for name, settings in recipe.resolve(layout.layers, config).items():
        layer = layout.layers[name]
        if settings is not None:
            _check_matrix(checkpoint.tensors[layer.tensor], settings)
            matrices[layer.tensor] = (name, settings)
    if not matrices:
        raise CheckpointError(f"{checkpoint.folder}: the recipe leaves nothing to compress")
    check_loadable(model, {name: [f"{name}.codes"] for name, _ in matrices.values()})
    entries = tuple(checkpoint.tensors.values())
    return Plan(entries, matrices, layout.warnings, tuple(layout.layers))


def check_limit(name: str, nbytes: int, limits: Mapping[str, int]) -> None:
    """Refuse a matrix that takes more bytes than the budget gave it."""
    if nbytes > limits.get(name, nbytes):
        raise PlanError(
            f"{name} takes {nbytes} bytes, the plan gives it {limits[name]}: the plan was made "
            "from other weights; make it anew from this checkpoint (llava-fa plan SOURCE)"
        )


def _check_matrix(entry: TensorEntry, config: CompressionConfig) -> None:
    if entry.dtype not in _WEIGHT_DTYPES:
        raise CheckpointError(
            f"{entry.file}: the linear weight {entry.name} is stored as {entry.dtype}; expected "
            f"one of {', '.join(sorted(_WEIGHT_DTYPES))}; start from the unquantized checkpoint, "
            "or skip this layer in a recipe"
        )
    rows, columns = entry.shape
    possible = min(rows // 2 + 1, columns)
    if config.rank > possible:
        raise ValueError(
            f"{entry.file}: rank {config.rank} is above {possible}, the largest possible for "
            f"{entry.name} of shape {list(entry.shape)}; lower the rank, or give this layer its "
            "own in a recipe"
        )


def _check_dense(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is already quantized, by us or by anything else."""
    for where, part in _config_parts("", checkpoint.config):
        quantization = part.get("quantization_config")
        if not quantization:
            continue
        method = quantization.get("quant_method") if isinstance(quantization, dict) else "unknown"
        remedy = "llava-fa decompress SOURCE DENSE" if method == QUANT_METHOD else "its own tools"
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: the checkpoint is already compressed "
            f"(quant_method {method!r} in {where}quantization_config); start from the dense "
            f"checkpoint, or make a dense one with {remedy}"
        )


def _config_parts(where: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield where, config
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _config_parts(f"{where}{key}.", value)

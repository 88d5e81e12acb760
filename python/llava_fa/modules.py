"""Finds which tensors of a checkpoint are weights of linear layers, by the model's structure.

The model is built on the meta device from its configuration alone. Names on disk differ from module
names and change between versions of transformers, so they are mapped with transformers' own
renaming rules; a compressed weight is stored under the canonical name: that of its module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from .errors import CheckpointError
from .shards import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of the model and the checkpoint tensor that holds its weight.

    ``kept`` says why the weight stays dense unless a recipe asks for it ("" if it is compressed);
    ``fixed`` marks those that no recipe can change. ``tensor`` is "" if the weight is tied and
    stored under the other name only.
    """

    name: str
    tensor: str
    shape: tuple[int, int]
    kept: str = ""
    fixed: bool = False


@dataclass(frozen=True)
class ModelLayout:
    """The linear layers of a model, by module name in the model's order, and what else to know."""

    layers: dict[str, LinearLayer]
    warnings: tuple[str, ...]


def build_meta_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Build the checkpoint's model without any memory for its weights."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.folder)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: transformers {transformers.__version__} knows "
            f"no such model ({error})"
        ) from error
    with torch.device("meta"):
        for name in checkpoint.config.get("architectures") or []:
            model_class = getattr(transformers, str(name), None)
            if model_class is not None:
                return cast("PreTrainedModel", model_class._from_config(config))
        autos: tuple[Any, ...] = (
            transformers.AutoModelForImageTextToText,
            transformers.AutoModelForCausalLM,
        )
        for auto in autos:
            if type(config) in auto._model_mapping:
                return cast("PreTrainedModel", auto.from_config(config))
    raise CheckpointError(
        f"{checkpoint.folder / 'config.json'}: transformers {transformers.__version__} has none of "
        f"the classes {checkpoint.config.get('architectures')}"
    )


def map_layers(checkpoint: Checkpoint, model: PreTrainedModel) -> ModelLayout:
    """Match every linear layer of the model with its tensor in the checkpoint.

    Raises
    ------
    CheckpointError
        A layer has no tensor, a tensor has another shape than its layer, or nothing matched.
    """
    targets = _module_names(model, checkpoint.tensors)
    sources: dict[str, str] = {}
    for tensor, (target, converted) in targets.items():
        if not converted and sources.setdefault(target, tensor) != tensor:
            raise CheckpointError(
                f"{checkpoint.folder}: {sources[target]} and {tensor} are both the model's {target}"
            )
    converted_targets = {target for target, converted in targets.values() if converted}
    layers, missing, lost, subclasses = {}, [], [], []
    kept = _kept_reasons(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if type(module) is not nn.Linear:  # its forward pass may do more than multiply
            subclasses.append(f"{name} ({type(module).__name__})")
            continue
        weight, shape = f"{name}.weight", (module.out_features, module.in_features)
        if weight in sources:
            reason = kept.get(name, ("", False))
            layers[name] = LinearLayer(name, sources[weight], shape, *reason)
        elif kept.get(name, ("", False))[1]:
            layers[name] = LinearLayer(name, "", shape, *kept[name])
        elif _comes_from_converter(weight, converted_targets):
            lost.append(name)
        else:
            missing.append(weight)
    _check_found(checkpoint, model, layers, missing)
    _check_shapes(checkpoint, layers.values())
    return ModelLayout(layers, _layout_warnings(model, lost, subclasses))


def _check_found(
    checkpoint: Checkpoint, model: nn.Module, layers: Mapping[str, LinearLayer], missing: list[str]
) -> None:
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder}: {type(model).__name__} needs {len(missing)} linear weight(s) "
            f"that no file holds, first {', '.join(missing[:3])}; the checkpoint is incomplete or "
            "config.json describes another model"
        )
    if not any(layer.tensor for layer in layers.values()):
        raise CheckpointError(
            f"{checkpoint.folder}: none of its {len(checkpoint.tensors)} tensors is the weight of "
            f"a linear layer of {type(model).__name__}; nothing to compress"
        )


def _check_shapes(checkpoint: Checkpoint, layers: Iterable[LinearLayer]) -> None:
    for layer in layers:
        if not layer.tensor:
            continue
        entry = checkpoint.tensors[layer.tensor]
        if entry.shape != layer.shape:
            raise CheckpointError(
                f"{entry.file}: tensor {layer.tensor} has shape {list(entry.shape)}, the model's "
                f"{layer.name} needs {list(layer.shape)}"
            )


def _kept_reasons(model: Any) -> dict[str, tuple[str, bool]]:
    """Layers that stay dense: module name to (reason, whether a recipe may not change it)."""
    reasons: dict[str, tuple[str, bool]] = {}
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is output:
            reasons[name] = ("output embedding", False)
    for target, origin in getattr(model, "all_tied_weights_keys", {}).items():
        for weight in (target, origin):
            reasons[weight.removesuffix(".weight")] = ("tied to another weight", True)
    return reasons


def _comes_from_converter(weight: str, converted_targets: set[str]) -> bool:
    """Whether transformers computes this weight from other tensors (e.g. splits a fused q, k, v).

    A one-to-many rule reports its first target only, so siblings of a converted weight count too.
    """
    parent = weight.rsplit(".", 2)[0]
    return any(target == weight or target.startswith(f"{parent}.") for target in converted_targets)


def _layout_warnings(model: nn.Module, lost: list[str], subclasses: list[str]) -> tuple[str, ...]:
    warnings = []
    if subclasses:
        warnings.append(
            f"{len(subclasses)} layer(s) stay dense, because they are of subclasses of nn.Linear, "
            f"whose forward pass may differ: {', '.join(subclasses)}"
        )
    if lost:
        warnings.append(
            f"{len(lost)} linear layer(s) stay dense, because transformers computes their weights "
            f"from fused tensors while loading; first {lost[0]}"
        )
    # Mixture-of-experts families hold all experts in one 3-D parameter, which no scan for
    # nn.Linear sees; position tables of convolutions are 4-D and have their own module classes.
    fused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and "expert" in name.lower()
    ]
    if fused:
        warnings.append(
            f"{len(fused)} fused expert parameter(s) stay dense: 3-D weights are not supported "
            f"yet; first {fused[0]}"
        )
    return tuple(warnings)


def _module_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Map checkpoint names to names in ``model.state_dict()``, as ``from_pretrained`` does.

    The flag says that a converter (not only a renaming) stands between the two.
    """
    return resolve_names(model, names, dict.fromkeys(model.state_dict(), True))


def resolve_names(
    model: PreTrainedModel, names: Iterable[str], known: dict[str, bool]
) -> dict[str, tuple[str, bool]]:
    """As above, for a model whose state would hold the names ``known``."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    prefix = model.base_model_prefix
    resolved = {}
    # Some rules are stateful and rely on this order.
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = rename_source_key(name, [], [], prefix, known)
        resolved[name] = (target, pattern is not None)
    return resolved


def check_loadable(model: PreTrainedModel, packed: Mapping[str, Iterable[str]]) -> None:
    """Check that ``from_pretrained`` will look for every packed tensor under its canonical name.

    Parameters
    ----------
    packed
        Module name to the full names of its packed tensors.
    """
    known = dict.fromkeys(model.state_dict(), True)
    for module, names in packed.items():
        known.pop(f"{module}.weight", None)
        known.update(dict.fromkeys(names, True))
    wanted = [name for names in packed.values() for name in names]
    for name, (target, converted) in resolve_names(model, wanted, known).items():
        if target != name or converted:
            raise CheckpointError(
                f"transformers would look for the packed tensor {name} under {target}; this "
                "architecture needs a renaming rule that llava-fa does not know, please report it"
            )

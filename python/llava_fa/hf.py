"""Loads compressed checkpoints through transformers' ``from_pretrained``.

transformers builds the model on the meta device; before it reads the files, every compressed
``nn.Linear`` is swapped for a :class:`PackedLinear` whose buffers carry the stored names, types and
shapes; afterwards each is decoded into an ordinary ``nn.Linear``, one at a time.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .errors import FormatError
from .matrix_spec import MatrixSpec
from .packed_checkpoint import (
    FORMAT_VERSION,
    QUANT_METHOD,
    check_packed_tensors,
    check_version,
    parse_specs,
    unpack,
)
from .shards import TensorEntry, read_header


@register_quantization_config(QUANT_METHOD)
class LlavaFaConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a compressed checkpoint.

    Parameters
    ----------
    config
        The settings the checkpoint was made with; for the record.
    modules
        Module name to ``MatrixSpec.to_dict()``.
    """

    # Tells transformers that the loaded model is an ordinary dense one, so that it can be trained,
    # cast and saved like any other.
    dequantize = True

    def __init__(
        self,
        format_version: int = FORMAT_VERSION,
        config: Mapping[str, Any] | None = None,
        modules: Mapping[str, Any] | None = None,
        **_unknown: Any,
    ) -> None:
        check_version(format_version, "quantization_config")
        self.quant_method: Any = QUANT_METHOD
        self.format_version = format_version
        self.config = config or {}
        # Checked by `specs`, whose errors name the module; not everyone who reads this needs it.
        self.modules = modules or {}

    def specs(self) -> dict[str, MatrixSpec]:
        """Return the checked descriptions by module name."""
        return parse_specs(self.modules, "quantization_config")


class PackedLinear(nn.Module):
    """Holds the stored tensors of one linear layer while the checkpoint is being read."""

    def __init__(self, spec: MatrixSpec, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.spec = spec
        for suffix, (dtype, shape) in spec.tensors().items():
            self.register_buffer(suffix, torch.empty(shape, dtype=dtype, device="meta"))
        self.bias = bias

    def decode(self, name: str, dtype: torch.dtype) -> nn.Linear:
        """Return the dense layer on the device of the stored tensors."""
        state = {suffix: self.get_buffer(suffix) for suffix in self.spec.tensors()}
        for suffix, tensor in state.items():
            # transformers marks what it read; anything else it has merely allocated.
            if tensor.is_meta or not getattr(tensor, "_is_hf_initialized", False):
                raise FormatError(
                    f"tensor {name}.{suffix} was not loaded; the checkpoint is incomplete (loading "
                    "with parts of the model on disk is not supported)"
                )
        device = self.codes.device
        matrix = unpack(name, self.spec, {key: value.cpu() for key, value in state.items()})
        rows, columns = self.spec.shape
        with torch.device("meta"):
            linear = nn.Linear(columns, rows, bias=False, dtype=dtype)
        linear.weight = nn.Parameter(matrix.dense().to(device=device, dtype=dtype))
        linear.register_parameter("bias", self.bias)
        return linear


@register_quantizer(QUANT_METHOD)
class LlavaFaQuantizer(HfQuantizer):
    """Swaps, checks and decodes; transformers does the reading."""

    quantization_config: LlavaFaConfig

    def is_serializable(self) -> bool:
        """Whether the loaded model can be saved: it is dense, so yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the loaded model can be trained: it is dense, so yes."""
        return True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to compress while loading, which transformers asks of some methods."""
        if not self.pre_quantized:
            raise FormatError(
                "from_pretrained cannot compress a dense checkpoint; use "
                "llava_fa.compress_checkpoint(SOURCE, OUTPUT) and load OUTPUT"
            )

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        specs = self.quantization_config.specs()
        if checkpoint_files:
            _check_files(specs, checkpoint_files)
        for stored, spec in specs.items():
            name = _module_name(model, stored)
            if name is not None:
                _swap(model, name, spec)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        dtype = model.config.dtype or torch.get_default_dtype()
        for name, holder in list(_holders(model)):
            linear = holder.decode(name, dtype)
            linear.train(model.training)
            if hasattr(holder, "_hf_hook"):  # the model is spread over several devices
                hooks: Any = importlib.import_module("accelerate.hooks")
                hooks.add_hook_to_module(linear, holder._hf_hook)
            model.set_submodule(name, linear)
            del holder
        return model


def _holders(model: nn.Module) -> Iterator[tuple[str, PackedLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            yield name, module


def _check_files(specs: Mapping[str, MatrixSpec], files: list[str]) -> None:
    """Find missing or inconsistent tensors before transformers would initialize them at random."""
    entries: dict[str, TensorEntry] = {}
    for file in files:
        entries.update(read_header(Path(file)))
    for name, spec in specs.items():
        check_packed_tensors(name, spec, entries)


def _module_name(model: Any, stored: str) -> str | None:
    """Find the module a name means in this class of model: the base model has no prefix."""
    prefix = f"{model.base_model_prefix}."
    names = (stored, stored.removeprefix(prefix), prefix + stored)
    for name in names:
        try:
            model.get_submodule(name)
        except AttributeError:
            continue
        return name
    if not stored.startswith(prefix):
        return None  # a head, which the base model does not have
    raise FormatError(
        f"config.json: the compressed layer {stored} does not exist in {type(model).__name__}; the "
        "checkpoint belongs to another class or needs another version of transformers"
    )


def _swap(model: nn.Module, name: str, spec: MatrixSpec) -> None:
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise FormatError(
            f"config.json: the compressed layer {name} is a {type(module).__name__} in this model, "
            "expected nn.Linear"
        )
    shape = (module.out_features, module.in_features)
    if tuple(spec.shape) != shape:
        raise FormatError(
            f"config.json: {name} is stored as {list(spec.shape)}, the model needs {list(shape)}"
        )
    model.set_submodule(name, PackedLinear(spec, module.bias))

"""Loads compressed checkpoints through transformers' ``from_pretrained``.

transformers builds the model on the meta device; before it reads the files, every compressed
``nn.Linear`` is swapped. On the CPU a module keeps the place of a :class:`FourierLinear` that
``past_transformers.py`` reads; on other devices, whose memory transformers plans, and for tensors
that come without files, the layer itself is swapped in, whose buffers carry the stored names, types
and shapes. Afterwards each is checked, and with ``runtime="dense"`` decoded into an ordinary
``nn.Linear``, one at a time.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .config import CompressionConfig
from .errors import FormatError
from .matrix import CompressedMatrix
from .matrix_spec import MatrixSpec
from .nn import FourierLinear
from .packed_checkpoint import (
    FORMAT_VERSION,
    QUANT_METHOD,
    check_described,
    check_packed_tensors,
    check_version,
    parse_specs,
    unpack,
)
from .past_transformers import LayersOfFiles
from .shards import TensorEntry, read_header
from .while_loading import CompressWhileLoading

Runtime = Literal["dense", "packed"]
RUNTIME_VARIABLE = "LLAVA_FA_RUNTIME"


def default_runtime(while_loading: bool = False) -> Runtime:
    """Return what compressed layers become where nobody says it.

    What the environment variable says; else packed, but dense for a compressed checkpoint in a
    program that sees a GPU, for whose kernels no speed has been measured yet (``docs/cuda.md``).

    Parameters
    ----------
    while_loading
        Whether the checkpoint is dense and compressed while it is loaded.

    Raises
    ------
    ValueError
        The environment variable holds something else.
    """
    otherwise = "dense" if torch.cuda.is_available() and not while_loading else "packed"
    return _checked_runtime(os.environ.get(RUNTIME_VARIABLE, otherwise), RUNTIME_VARIABLE)


def _checked_runtime(runtime: Any, name: str) -> Runtime:
    if runtime not in get_args(Runtime):
        raise ValueError(f"{name} is {runtime!r}, expected one of {get_args(Runtime)}")
    return cast(Runtime, runtime)


@register_quantization_config(QUANT_METHOD)
class LlavaFaConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a compressed checkpoint, or of one to compress while loading.

    ``from_pretrained(DENSE, quantization_config=LlavaFaConfig(bits=4))`` compresses without data as
    it reads, the layers that :func:`compress_checkpoint` compresses, and to the same bytes;
    ``save_pretrained`` then writes a compressed checkpoint.

    Parameters
    ----------
    config
        The settings the checkpoint was made with; for the record.
    modules
        Module name to ``MatrixSpec.to_dict()``.
    runtime
        What compressed layers become when the model is loaded: ``"packed"``,
        :class:`FourierLinear`, which keeps the memory small, or ``"dense"``, ordinary ``nn.Linear``
        with the decoded weight. Not stored; to choose, give
        ``quantization_config=LlavaFaConfig(runtime="dense")`` to ``from_pretrained``, which takes
        everything else from the checkpoint. None: what :func:`default_runtime` says.
    compression_device
        Where matrices are compressed while loading, wherever the model is loaded to: ``"cpu"``, or
        an NVIDIA GPU (``"cuda"``, ``"cuda:1"``). Not stored.
    **options
        Of :class:`CompressionConfig`, for compressing while loading: ``bits`` and what else differs
        from the defaults. Without any, names that this version does not know are ignored.

    Raises
    ------
    FormatError
        The format version is not one that this library reads.
    ValueError
        The runtime is neither, or an option of compression is unknown or out of its range.
    """

    def __init__(
        self,
        format_version: int = FORMAT_VERSION,
        config: Mapping[str, Any] | None = None,
        modules: Mapping[str, Any] | None = None,
        runtime: Runtime | None = None,
        compression_device: str | torch.device = "cpu",
        **options: Any,
    ) -> None:
        check_version(format_version, "quantization_config")
        self.compression = _compression(options)
        if runtime is None:
            runtime = default_runtime(while_loading=self.compression is not None)
        self.runtime = _checked_runtime(runtime, "runtime")
        self.compression_device = compression_device
        self.quant_method: Any = QUANT_METHOD
        self.format_version = format_version
        self.config = config or {}
        # Checked by `specs`, whose errors name the module; not everyone who reads this needs it.
        self.modules = modules or {}

    @property
    def dequantize(self) -> bool:
        """Whether the loaded model is an ordinary dense one, to be cast and saved like any."""
        return self.runtime == "dense"

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return what a caller of ``from_pretrained`` may choose, whatever the checkpoint says."""
        return {"runtime": self.runtime}

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` stores: all but the choices of this process."""
        values: dict[str, Any] = super().to_dict()
        del values["runtime"], values["compression"], values["compression_device"]
        return values

    def specs(self) -> dict[str, MatrixSpec]:
        """Return the checked descriptions by module name."""
        return parse_specs(self.modules, "quantization_config")


def _compression(options: dict[str, Any]) -> CompressionConfig | None:
    """Return the settings to compress with, if any of them is given."""
    known = {field.name for field in dataclasses.fields(CompressionConfig)}
    if known.isdisjoint(options):
        return None
    options.pop("quant_method", None)  # transformers passes it on
    return CompressionConfig.from_dict(options)


# transformers asks only the classes listed here for what a caller may choose.
_choosable: Any = auto
_choosable.LOADING_ATTRIBUTES_CONFIG_TYPES += (LlavaFaConfig,)


@register_quantizer(QUANT_METHOD)
class LlavaFaQuantizer(HfQuantizer):
    """Swaps, checks and decodes; transformers does the reading."""

    quantization_config: LlavaFaConfig
    _compress: CompressWhileLoading | None = None
    _reader: LayersOfFiles | None = None

    def is_serializable(self) -> bool:
        """Whether the loaded model can be saved: dense or as it was stored, so yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the loaded model can be trained: wholly if dense, with adapters if packed."""
        return True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a dense checkpoint unless it is to be compressed while loading."""
        if not self.pre_quantized and self.quantization_config.compression is None:
            raise FormatError(
                "the checkpoint is dense; compress it with llava_fa.compress_checkpoint(SOURCE, "
                "OUTPUT) and load OUTPUT, or while loading with LlavaFaConfig(bits=4)"
            )

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a tensor is to be compressed while loading."""
        return self._compress is not None and self._compress.wants(param_name)

    def get_quantize_ops(self) -> CompressWhileLoading | None:
        """Return what compresses such a tensor."""
        return self._compress

    def _process_model_before_weight_loading(
        self,
        model: Any,
        checkpoint_files: list[str] | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> None:
        compression = self.quantization_config.compression
        if not self.pre_quantized and compression is not None:
            packed = self.quantization_config.runtime == "packed"
            device = self.quantization_config.compression_device
            self._compress = CompressWhileLoading(
                model, checkpoint_files, compression, packed, device
            )
            return
        specs = self.quantization_config.specs()
        if checkpoint_files:
            entries = _checked_entries(specs, checkpoint_files)
            if _is_on_the_cpu(device_map):
                self._reader = LayersOfFiles(entries)
        swapped = {}
        for stored, spec in specs.items():
            name = _module_name(model, stored)
            if name is None:
                continue
            _check_module(model, name, spec)
            if self._reader is not None:
                self._reader.reserve(model, name, stored, spec)
            else:
                _swap(model, name, spec)
            swapped[name] = spec.to_dict()
        if self._reader is not None:
            model._keys_to_ignore_on_load_unexpected |= self._reader.ignored()
        # What this class of model says when it is saved packed: a base model has other names.
        self.quantization_config.modules = swapped

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self._compress is not None:
            return self._compressed(model, self._compress)
        dtype = model.config.dtype or torch.get_default_dtype()
        stays_packed = self.quantization_config.runtime == "packed"
        if stays_packed:
            # Else transformers saves under the names of old checkpoints; ours are the module names.
            model._weight_conversions = []
        for name, layer in self._loaded_layers(model):
            matrix = _checked_matrix(name, layer)
            _replace(model, name, layer if stays_packed else _dense_layer(layer, matrix, dtype))
            del layer, matrix
        return model

    def _loaded_layers(self, model: Any) -> Iterator[tuple[str, FourierLinear]]:
        reader, self._reader = self._reader, None
        if reader is None:
            return iter(list(_packed_layers(model)))
        model._keys_to_ignore_on_load_unexpected -= reader.ignored()
        return reader.layers(model)

    def _compressed(self, model: Any, compress: CompressWhileLoading) -> Any:
        """Finish a model that was compressed while loading: it becomes like one that was stored."""
        compress.check()
        if self.quantization_config.dequantize:
            remove: Any = self.remove_quantization_config
            remove(model)
            return model
        model._weight_conversions = []  # as above
        # The caller's own stays as it is, for further checkpoints.
        self.quantization_config = model.config.quantization_config = LlavaFaConfig(
            config=compress.settings.to_dict(), modules=compress.specs, runtime="packed"
        )
        self._compress, self.pre_quantized = None, True
        return model


def _packed_layers(model: nn.Module) -> Iterator[tuple[str, FourierLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, FourierLinear):
            yield name, module


def _is_on_the_cpu(device_map: Any) -> bool:
    """Whether the whole model is loaded there."""
    devices = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    return all(device is None or str(device) == "cpu" for device in devices)


def _replace(model: Any, name: str, layer: nn.Module) -> None:
    """Put a layer where a module was, with what transformers and accelerate gave to that."""
    before = model.get_submodule(name)
    if before is layer:
        return
    layer.train(before.training)
    if hasattr(before, "_hf_hook"):  # the model is spread over several devices
        hooks: Any = importlib.import_module("accelerate.hooks")
        hooks.add_hook_to_module(layer, before._hf_hook)
    model.set_submodule(name, layer)


def _checked_matrix(name: str, layer: FourierLinear) -> CompressedMatrix:
    """Check everything that was read for a layer."""
    for suffix, tensor in layer.state_dict(keep_vars=True).items():
        # transformers marks what it read; anything else it has merely allocated.
        if tensor.is_meta or not getattr(tensor, "_is_hf_initialized", False):
            raise FormatError(
                f"tensor {name}.{suffix} was not loaded; the checkpoint is incomplete (loading "
                "with parts of the model on disk is not supported)"
            )
    state = {suffix: tensor.cpu() for suffix, tensor in layer.stored_tensors().items()}
    return unpack(name, layer.spec, state, in_place=True)


def _dense_layer(layer: FourierLinear, matrix: CompressedMatrix, dtype: torch.dtype) -> nn.Linear:
    """Return the dense layer on the device of the stored tensors."""
    with torch.device("meta"):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=dtype)
    weight = matrix.dense().to(device=layer.codes.device, dtype=dtype)
    linear.weight = nn.Parameter(weight)
    linear.register_parameter("bias", layer.bias)
    return linear


def _checked_entries(specs: Mapping[str, MatrixSpec], files: list[str]) -> dict[str, TensorEntry]:
    """Find missing or inconsistent tensors before transformers would initialize them at random."""
    entries: dict[str, TensorEntry] = {}
    for file in files:
        entries.update(read_header(Path(file)))
    for name, spec in specs.items():
        check_packed_tensors(name, spec, entries)
    check_described(specs, entries)
    return entries


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


def _check_module(model: nn.Module, name: str, spec: MatrixSpec) -> None:
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


def _swap(model: nn.Module, name: str, spec: MatrixSpec) -> None:
    layer: Any = FourierLinear(spec, bias=False, device="meta")
    layer.register_parameter("bias", model.get_submodule(name).bias)
    # Nothing of it may be initialized at random; what was not read is an error.
    layer._is_hf_initialized = True
    model.set_submodule(name, layer)

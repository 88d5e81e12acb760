"""Compresses the linear layers of a dense checkpoint while transformers loads it.

transformers hands over each weight as it has read it. With ``runtime="packed"`` its layer gives way
to a :class:`FourierLinear`, otherwise it gets the decoded weight; so one dense matrix at a time is
in memory. The same layers are compressed, to the same bytes, as by ``compress_checkpoint`` on the
same kind of device.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps

from .config import CompressionConfig
from .device_compression import compression_device, to_device
from .errors import CheckpointError, LlavaFaError
from .matrix import CompressedMatrix, compress_matrix
from .nn import FourierLinear
from .plan import make_plan
from .recipe import Recipe
from .shards import Checkpoint


class CompressWhileLoading(ConversionOps):
    """What transformers applies to each weight that :meth:`wants`.

    Parameters
    ----------
    model
        The model on the meta device.
    files
        The files that will be read; None if the weights come from elsewhere.
    config
        Settings of every layer that ``compress_checkpoint`` compresses without a recipe.
    packed
        Whether layers keep their matrices packed.
    device
        Where matrices are compressed, as ``compress_checkpoint`` takes it.

    Raises
    ------
    CheckpointError
        The files are no dense safetensors checkpoint of this model.
    DeviceError, ValueError
        There is no such device.
    """

    def __init__(
        self,
        model: Any,
        files: list[str] | None,
        config: CompressionConfig,
        packed: bool,
        device: str | torch.device,
    ) -> None:
        self._device = compression_device(device)
        if not files:
            raise CheckpointError(
                "compressing while loading needs a checkpoint's files, not a state dict; load "
                "without quantization_config, save_pretrained, and load that folder"
            )
        plan = make_plan(Checkpoint.open(Path(files[0]).parent), config, Recipe(), model)
        for message in plan.warnings:
            warnings.warn(message, stacklevel=2)
        self.settings = config
        self._of_layer = dict(plan.matrices.values())
        self._packed = packed
        self._failure: LlavaFaError | None = None
        self.specs: dict[str, Any] = {}

    def wants(self, tensor: str) -> bool:
        """Whether a tensor of the model is to be compressed."""
        return tensor.endswith(".weight") and tensor.removesuffix(".weight") in self._of_layer

    def convert(self, input_dict: dict[str, Any], *_: Any, **context: Any) -> dict[str, Any]:
        """Compress one weight; return what the model's tensor becomes, if it still has one."""
        tensor: str = context["full_layer_name"]
        context["missing_keys"].discard(tensor)
        if self._failure is not None:
            return {}  # raised in the end: transformers would make another error of it here
        (values,) = input_dict.values()
        weight = values[0] if isinstance(values, list) else values
        name = tensor.removesuffix(".weight")
        try:
            settings = self._of_layer[name].for_checkpoint()
            matrix = compress_matrix(to_device(weight, self._device), settings)
        except LlavaFaError as error:
            self._failure = type(error)(f"tensor {tensor}: {error}")
            return {}
        self.specs[name] = matrix.spec.to_dict()
        if not self._packed:
            return {tensor: matrix.dense().to(weight.device, context["model"].config.dtype)}
        _replace(context["model"], name, matrix, weight.device)
        return {}

    def check(self) -> None:
        """Raise what went wrong, after loading."""
        if self._failure is not None:
            raise self._failure
        if missing := self._of_layer.keys() - self.specs.keys():
            raise CheckpointError(f"{min(missing)}.weight was not loaded, so not compressed either")


def _replace(model: nn.Module, name: str, matrix: CompressedMatrix, device: torch.device) -> None:
    layer: Any = FourierLinear.from_matrix(matrix).to(device)
    # Read already or still on the meta device; then transformers sets it here.
    layer.register_parameter("bias", model.get_submodule(name).bias)
    layer._is_hf_initialized = True
    model.set_submodule(name, layer)

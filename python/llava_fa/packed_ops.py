"""Products with a packed matrix as torch operators, so that autograd and torch.compile know them.

Operators carry tensors and strings only. So a matrix comes as the list of its stored tensors, in
file order, and its ``MatrixSpec`` as JSON; what the core prepares from them is remembered as long
as the tensors live and stay unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import device_ops
from .matrix import CompressedMatrix
from .matrix_spec import MatrixSpec
from .packed_checkpoint import unpack
from .remembered import Remembered

_prepared: Remembered[CompressedMatrix] = Remembered()


@cache
def _spec(description: str) -> MatrixSpec:
    return MatrixSpec.from_dict(json.loads(description))


@cache
def _names(description: str) -> tuple[str, ...]:
    return tuple(_spec(description).tensors())


def prepared(tensors: Sequence[Tensor], description: str) -> CompressedMatrix:
    """Return the matrix of stored tensors on the CPU, without copying them.

    Raises
    ------
    FormatError
        The tensors do not hold a matrix, or another than described.
    """
    names = _names(description)

    def unpacked(held: Sequence[Tensor], in_place: bool) -> CompressedMatrix:
        state = dict(zip(names, held, strict=True))
        return unpack("layer", _spec(description), state, in_place=in_place)

    if any(map(Tensor.is_inference, tensors)):
        # Torch does not count their changes, so nothing may be remembered of them.
        return unpacked(tensors, in_place=False)
    codes = tensors[names.index("codes")]
    return _prepared.get(codes, tensors, lambda held: unpacked(held, in_place=True))


def _on_device(tensors: Sequence[Tensor], description: str) -> device_ops.LayerOnDevice:
    """Return what products with a layer on a GPU need.

    Raises
    ------
    FormatError
        As :func:`prepared` does.
    DeviceError, ValueError
        As :func:`device_ops.layer_on_device` does.
    """

    def matrix() -> CompressedMatrix:
        names = _names(description)
        state = {name: tensor.cpu() for name, tensor in zip(names, tensors, strict=True)}
        return unpack("layer", _spec(description), state, in_place=True)

    codes = _names(description).index("codes")
    return device_ops.layer_on_device(tensors, codes, matrix)


def product(x: Tensor, tensors: Sequence[Any], description: str, dtype: torch.dtype) -> Tensor:
    """Return ``x Wᵀ`` of :func:`multiply` as ``dtype``, at once where nobody watches.

    Going through the operator takes torch longer than a small product takes. It is needed only for
    gradients, and for what records or replaces operators: compilers, tracers, fake tensors, modes.
    """
    watched = (
        type(x) is not Tensor
        or x.is_meta
        or (x.requires_grad and torch.is_grad_enabled())
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or _get_current_dispatch_mode() is not None
    )
    if watched:
        recorded: Tensor = multiply(x, tensors, description)
        return recorded.to(dtype)
    return _multiply(x, tensors, description, dtype)


def _multiply(
    x: Tensor, tensors: Sequence[Tensor], description: str, dtype: torch.dtype = torch.float32
) -> Tensor:
    if x.is_cuda:
        layer = _on_device(tensors, description)
        return device_ops.multiply(layer, x.detach(), dtype)
    return prepared(tensors, description).multiply(x, dtype, half=x.dtype.itemsize == 2)


@torch.library.custom_op("llava_fa::multiply", mutates_args=())
def multiply(x: Tensor, tensors: Sequence[Tensor], description: str) -> Tensor:
    """Return ``x Wᵀ``, (..., m) float32, for x (..., n) of any floating dtype.

    Activations of 16 bits are multiplied at half precision; many of bfloat16 on the CPU in
    bfloat16, where the processor can.
    """
    return _multiply(x, tensors, description)


@torch.library.custom_op("llava_fa::multiply_transposed", mutates_args=())
def multiply_transposed(y: Tensor, tensors: Sequence[Tensor], description: str) -> Tensor:
    """Return ``y W``, (..., n) float32, for y (..., m); decodes W for the time of the product."""
    if y.is_cuda:
        return y.float() @ device_ops.dense(_on_device(tensors, description)).T
    weight: Tensor = prepared(tensors, description).dense()
    return y.float() @ weight


@multiply.register_fake
def _(x: Tensor, tensors: Sequence[Tensor], description: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], _spec(description).shape[0]), dtype=torch.float32)


@multiply_transposed.register_fake
def _(y: Tensor, tensors: Sequence[Tensor], description: str) -> Tensor:
    return y.new_empty((*y.shape[:-1], _spec(description).shape[1]), dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], str], output: Tensor) -> None:
    operand, tensors, ctx.description = inputs
    ctx.save_for_backward(*tensors)
    ctx.dtype = operand.dtype


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, list[None], None]:
    tensors = list(ctx.saved_tensors)
    product = multiply_transposed(gradient, tensors, ctx.description)
    return product.to(ctx.dtype), [None] * len(tensors), None


def _transposed_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, list[None], None]:
    tensors = list(ctx.saved_tensors)
    product = multiply(gradient, tensors, ctx.description)
    return product.to(ctx.dtype), [None] * len(tensors), None


# Each is the other's adjoint, so gradients of gradients exist too.
multiply.register_autograd(_gradient, setup_context=_keep)
multiply_transposed.register_autograd(_transposed_gradient, setup_context=_keep)

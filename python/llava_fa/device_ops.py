"""Products on NVIDIA GPUs: what a layer's tensors need there, and their launch.

A product is queued on torch's current stream and takes its memory from torch, so it can be captured
into a graph and needs no synchronization. The first one of a layer prepares: it reads the stored
tensors back to check them, and copies constants to the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _core
from .arrays import dtype_name
from .errors import DeviceError, DeviceMemoryError
from .matrix import CompressedMatrix
from .remembered import Remembered

_DENSE_ROWS = 2048
_REMEDY = "multiply fewer activations at once, or free memory of the GPU"


class LayerOnDevice(NamedTuple):
    """A matrix on a GPU: its codes, used in place, and what products need besides.

    ``stream`` is the one in whose order torch may reuse the memory of ``constants``.
    """

    shape: tuple[int, int]
    codes: Tensor
    constants: Tensor
    product: _core.DeviceProduct
    stream: torch.cuda.Stream


_layers: Remembered[LayerOnDevice] = Remembered()


def cuda_available() -> bool:
    """Whether NVIDIA GPUs can be used here, for products and for compression."""
    return cuda_unavailable_reason() is None


def cuda_unavailable_reason() -> str | None:
    """Return why they cannot, and what to do about it; None if they can."""
    return _core.cuda_unavailable_reason()


def layer_on_device(
    tensors: Sequence[Tensor], codes: int, matrix: Callable[[], CompressedMatrix]
) -> LayerOnDevice:
    """Return what products with stored tensors on a GPU need, prepared at the first call.

    Parameters
    ----------
    tensors
        All on one GPU.
    codes
        Which of them holds the codes.
    matrix
        Returns the matrix that they hold, checked, on the CPU.

    Raises
    ------
    DeviceError
        The GPU cannot be used, or there is something to prepare while a graph is captured.
    ValueError
        The tensors are on different devices, or their memory is not as kernels read it.
    """
    _check(tensors, tensors[codes])
    return _layers.get(tensors[codes], tensors, lambda held: _prepare(held[codes], matrix))


def _check(tensors: Sequence[Tensor], codes: Tensor) -> None:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        places = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"the layer's tensors are on {places}: move the layer with .to()")
    if not codes.is_contiguous():
        raise ValueError("the layer's codes are not contiguous: assign codes.contiguous()")
    if any(tensor.is_inference() for tensor in tensors):
        raise DeviceError(
            "the layer was loaded or moved in inference mode, where torch does not count changes: "
            "do that outside of torch.inference_mode(); products may run inside"
        )


def _prepare(codes: Tensor, matrix: Callable[[], CompressedMatrix]) -> LayerOnDevice:
    """Return what products with ``codes`` need on their GPU; ``matrix`` as above."""
    if torch.cuda.is_current_stream_capturing():
        raise DeviceError(
            "the first product of a layer cannot be captured into a graph: call the layer once "
            "before, as torch asks for of any module"
        )
    unpacked = matrix()
    with torch.cuda.device(codes.device):
        product = unpacked.on_device(codes.device.index)
    constants = torch.from_numpy(product.constants()).to(codes.device)
    stream = torch.cuda.current_stream(codes.device)
    return LayerOnDevice(unpacked.shape, codes, constants, product, stream)


def multiply(layer: LayerOnDevice, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x Wᵀ`` as ``dtype``, rounded once, for x (..., n) on the layer's GPU.

    Raises
    ------
    ValueError
        x is on another device.
    DeviceMemoryError
        The GPU's memory is too full.
    DeviceError
        The GPU reports an error.
    """
    if x.device != layer.codes.device:
        raise ValueError(
            f"the activations are on {x.device}, the layer on {layer.codes.device}: move one of "
            "them with .to()"
        )
    rows, cols = layer.shape
    half = x.dtype.itemsize == 2
    flat = x.reshape(-1, cols)
    if flat.stride(1) != 1 or flat.stride(0) < cols:
        flat = flat.contiguous()
    needed = layer.product.workspace_bytes(flat.shape[0], half)
    out = _room((*x.shape[:-1], rows), dtype, x.device)
    workspace = _room((needed,), torch.uint8, x.device)
    stream = torch.cuda.current_stream(x.device)
    if stream != layer.stream:  # the layer may go while the product still waits there
        layer.constants.record_stream(stream)
    if flat.shape[0] > 0:
        with torch.cuda.device(x.device):
            layer.product.multiply(
                codes=layer.codes.data_ptr(),
                constants=layer.constants.data_ptr(),
                workspace=workspace.data_ptr(),
                activations=flat.data_ptr(),
                activation_type=dtype_name(flat.dtype),
                count=flat.shape[0],
                row_stride=max(flat.stride(0), cols),  # of a single row it says nothing
                output=out.data_ptr(),
                output_type=dtype_name(dtype),
                half=half,
                stream=stream.cuda_stream,
            )
    return out


def dense(layer: LayerOnDevice) -> Tensor:
    """Return Wᵀ, (n, m) float32, on the layer's GPU: the products of unit vectors, to 10⁻⁵."""
    rows, cols = layer.shape
    device = layer.codes.device
    out = _room((cols, rows), torch.float32, device)
    for first in range(0, cols, _DENSE_ROWS):
        count = min(_DENSE_ROWS, cols - first)
        units = torch.zeros(count, cols, device=device)
        units[:, first : first + count].fill_diagonal_(1)
        out[first : first + count] = multiply(layer, units, torch.float32)
    return out


def _room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceMemoryError(f"{error}; {_REMEDY}") from error

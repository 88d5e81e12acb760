"""For tests of GPUs without one: what stands for the core's classes, the same on the CPU.

The stand-ins read and write at the addresses that they are given. ``as_a_gpu`` makes tensors of the
CPU count as being on a GPU for the modules that ask.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import llava_fa
from llava_fa import _core

without_gpu = pytest.mark.skipif(
    llava_fa.cuda_available(), reason="a GPU can be used here; tests/cuda tests it"
)


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return always the same random one."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


class Stream:
    """torch's current stream."""

    cuda_stream = 7


def as_a_gpu(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Let modules take every tensor for one on a GPU, and torch have a stream there."""
    for module in modules:
        monkeypatch.setattr(f"{module}.is_on_gpu", lambda array: isinstance(array, Tensor))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)


def memory_at(address: int, dtype: torch.dtype, *shape: int) -> Tensor:
    """Return the tensor that lies at an address."""
    count = int(np.prod(shape)) * dtype.itemsize
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
    return torch.from_numpy(memory).view(dtype).reshape(shape)


def weight_at(arguments: dict[str, Any], rows: int, cols: int) -> Tensor:
    """Return the weight that arguments tell the place, type and stride of."""
    dtype = getattr(torch, arguments["weight_type"])
    stride = arguments["row_stride"]
    values = memory_at(arguments["weight"], dtype, (rows - 1) * stride + cols)
    return values.as_strided((rows, cols), (stride, 1))


class Compressor:
    """Stands for ``DeviceCompressor``."""

    calls: list[dict[str, Any]]
    needed = 64

    def __init__(self, rows: int, cols: int, options: Any, device: int | None) -> None:
        self.rows, self.cols, self.options = rows, cols, options

    def workspace_bytes(self, full_moment: bool) -> int:
        """Return so many, for a full moment twice as many."""
        return self.needed * (1 + full_moment)

    def compress(self, **arguments: Any) -> Any:
        """Compress the weight where it is."""
        self.calls.append(arguments)
        weight = weight_at(arguments, self.rows, self.cols)
        moments = {name: arguments[name] for name in arguments if name.endswith("moment")}
        return _core.compress_matrix(weight, self.options, **moments)


class Stages:
    """Stands for ``DeviceStages``: what it was made with, and calls of its functions."""

    calls: list[tuple[str, dict[str, Any]]]
    needed = 64

    def __init__(
        self, rows: int, cols: int, options: Any, oversampling: int, device: int | None
    ) -> None:
        self.rows, self.cols, self.options, self.oversampling = rows, cols, options, oversampling

    def workspace_bytes(self) -> int:
        """Return so many."""
        return self.needed

    def dense_workspace_bytes(self) -> int:
        """Return how many decoding takes."""
        return 2 * self.needed

    def _spectrum_at(self, address: int) -> Tensor:
        return memory_at(address, torch.complex64, self.rows // 2 + 1, self.cols)

    def _call(self, name: str, arguments: dict[str, Any]) -> None:
        assert arguments["workspace_bytes"] == self.needed * (1 + (name == "dense"))
        assert arguments["stream"] == Stream.cuda_stream
        self.calls.append((name, arguments))

    def diagonal_scales(self, **arguments: Any) -> Any:
        """Return the CPU's."""
        self._call("diagonal_scales", arguments)
        moments = {name: arguments[name] for name in arguments if name.endswith("moment")}
        return _core.diagonal_scales(weight_at(arguments, self.rows, self.cols), **moments)

    def half_spectrum(self, **arguments: Any) -> None:
        """Write the CPU's."""
        self._call("half_spectrum", arguments)
        found = _core.half_spectrum(weight_at(arguments, self.rows, self.cols))
        self._spectrum_at(arguments["spectrum"]).copy_(torch.from_numpy(found))

    def inverse_half_spectrum(self, **arguments: Any) -> None:
        """Write the CPU's."""
        self._call("inverse_half_spectrum", arguments)
        spectrum = self._spectrum_at(arguments["spectrum"])
        found = torch.from_numpy(_core.inverse_half_spectrum(spectrum, self.rows))
        memory_at(arguments["weight"], torch.float32, self.rows, self.cols).copy_(found)

    def truncated_svd(self, **arguments: Any) -> Any:
        """Return the CPU's."""
        self._call("truncated_svd", arguments)
        return _core.truncated_svd(
            self._spectrum_at(arguments["matrix"]),
            self.options["rank"],
            arguments["power_iterations"],
            self.oversampling,
            arguments["seed"],
            False,
            arguments["warm_start"],
        )

    def _code(self) -> tuple[str, int, int]:
        return self.options["codec"], self.options["code_bits"], self.options["state_bits"]

    def encode(self, **arguments: Any) -> Any:
        """Return the CPU's."""
        self._call("encode", arguments)
        return _core.polar_encode(self._spectrum_at(arguments["values"]), *self._code())

    def decode(self, **arguments: Any) -> None:
        """Write the CPU's."""
        self._call("decode", arguments)
        scales: npt.NDArray[np.uint16] = arguments["row_scale_bits"]
        row_bytes = (self.cols * self.options["code_bits"] + 7) // 8
        codes = memory_at(arguments["codes"], torch.uint8, len(scales), row_bytes).numpy()
        found = _core.polar_decode(codes, scales, self.cols, *self._code())
        self._spectrum_at(arguments["values"]).copy_(torch.from_numpy(found))

    def dense(self, **arguments: Any) -> None:
        """Write the CPU's, of the codes that the caller placed."""
        self._call("dense", arguments)
        tensors = arguments["matrix"].tensors()
        codes = memory_at(arguments["codes"], torch.uint8, *tensors["codes"].shape)
        flat = {
            name: np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for name, array in (tensors | {"codes": codes.numpy()}).items()
        }
        found = torch.from_numpy(_core.PackedMatrix.from_tensors(flat).dense())
        memory_at(arguments["weight"], torch.float32, self.rows, self.cols).copy_(found)

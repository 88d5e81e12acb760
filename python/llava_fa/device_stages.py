"""The stages between a weight and its codes for tensors on NVIDIA GPUs, which stay there.

Each is what :mod:`llava_fa.stages` says of it, and waits for the GPU. Codes, and the small parts of
a truncated SVD, come by way of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import _core
from .arrays import Array, ArrayT, dtype_name, exportable_or_none, is_on_gpu
from .device_weights import (
    check_weight,
    mebibytes,
    moment_on_cpu,
    plain_weight,
    refuse_capture,
    weight_arguments,
)
from .devices import memory_errors
from .errors import NonFiniteError
from .matrix_spec import MatrixSpec

_REMEDY = "free memory of the GPU, or compute on the CPU"


def half_spectrum(weight: Tensor) -> Tensor:
    """Return the half spectrum of an (m, n) weight, (m // 2 + 1, n) complex64."""
    check_weight(weight)
    rows, cols = weight.shape
    with _running(_stages(rows, cols, weight.device), weight.device) as (stages, room):
        plain = plain_weight(weight)
        spectrum = torch.empty(rows // 2 + 1, cols, dtype=torch.complex64, device=weight.device)
        stages.half_spectrum(**weight_arguments(plain), spectrum=spectrum.data_ptr(), **room)
    return spectrum


def inverse_half_spectrum(spectrum: Tensor, output_channels: int) -> Tensor:
    """Return the real (m, n) float32 matrix of a half spectrum; ``output_channels`` is m."""
    half_rows, cols = _check_complex(spectrum, "spectrum")
    if output_channels < 1 or output_channels // 2 + 1 != half_rows:
        raise ValueError(
            f"spectrum has {half_rows} rows, which do not belong to {output_channels} output "
            "channels"
        )
    device = spectrum.device
    with _running(_stages(output_channels, cols, device), device) as (stages, room):
        plain = _plain_complex(spectrum)
        weight = torch.empty(output_channels, cols, device=device)
        stages.inverse_half_spectrum(spectrum=plain.data_ptr(), weight=weight.data_ptr(), **room)
    return weight


def truncated_svd(
    matrix: Tensor,
    rank: int,
    power_iterations: int,
    oversampling: int,
    seed: int,
    warm_start: Array | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(U, s, Vh)`` by randomized subspace iteration."""
    rows, cols = _check_complex(matrix, "matrix")
    _check_rank(rank, rows, cols)
    device = matrix.device
    planned = _stages(_channels(rows), cols, device, rank=rank, oversampling=oversampling)
    with _running(planned, device) as (stages, room):
        plain = _plain_complex(matrix)
        start = warm_start.cpu() if is_on_gpu(warm_start) else warm_start
        left, values, right = stages.truncated_svd(
            matrix=plain.data_ptr(),
            power_iterations=power_iterations,
            seed=seed,
            warm_start=exportable_or_none(start),
            **room,
        )
        return _to(left, device), _to(values, device), _to(right, device)


def exact_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(U, s, Vh)`` of the full decomposition, by torch in double precision.

    Raises
    ------
    NonFiniteError
        The matrix holds NaN or infinity, of which torch makes nothing.
    """
    _check_rank(rank, *_check_complex(matrix, "matrix"))
    refuse_capture("a stage")
    if not bool(matrix.isfinite().all()):
        raise NonFiniteError("matrix holds NaN or infinity")
    with memory_errors(lambda: f"the decomposition of {tuple(matrix.shape)} needs more", _REMEDY):
        left, values, right = torch.linalg.svd(
            matrix.detach().to(torch.complex128), full_matrices=False
        )
    left, right = left[:, :rank].to(torch.complex64), right[:rank].to(torch.complex64)
    return left.contiguous(), values[:rank].float(), right.contiguous()


def polar_encode(
    values: Tensor, code_bits: int, codec: str, state_bits: int
) -> tuple[Tensor, Tensor]:
    """Return packed codes and row scales, on the GPU."""
    rows, cols = _check_complex(values, "values")
    device = values.device
    planned = _stages(_channels(rows), cols, device, codec, code_bits, state_bits)
    with _running(planned, device) as (stages, room):
        plain = _plain_complex(values)
        codes, row_scale = stages.encode(values=plain.data_ptr(), **room)
        return _to(codes, device), _to(row_scale, device)


def polar_decode(
    codes: Tensor, row_scale: Array, cols: int, code_bits: int, codec: str, state_bits: int
) -> Tensor:
    """Return the entries of packed codes, (rows, cols) complex64."""
    device = codes.device
    if not is_on_gpu(row_scale) or row_scale.device != device:
        place = row_scale.device if isinstance(row_scale, Tensor) else "the CPU"
        raise ValueError(
            f"row_scale is on {place}, the codes on {device}: move one of them with .to()"
        )
    if codes.ndim != 2 or row_scale.ndim != 1 or 0 in codes.shape or cols < 1:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)} and row_scale {tuple(row_scale.shape)}, "
            f"expected (rows, bytes) and (rows,) for {cols} columns"
        )
    planned = _stages(_channels(len(codes)), cols, device, codec, code_bits, state_bits)
    expected = (len(row_scale), (cols * code_bits + 7) // 8)
    if tuple(codes.shape) != expected:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)}, expected {expected} for {cols} columns"
        )
    with _running(planned, device) as (stages, room):
        plain = codes.detach().to(torch.uint8).contiguous()
        scales = (
            row_scale.detach().resolve_neg().to(torch.float16).contiguous().view(torch.int16).cpu()
        )
        values = torch.empty(len(codes), cols, dtype=torch.complex64, device=device)
        stages.decode(
            codes=plain.data_ptr(),
            row_scale_bits=scales.numpy().view("uint16"),
            values=values.data_ptr(),
            **room,
        )
    return values


def diagonal_scales(
    weight: Tensor, input_second_moment: Array | None, output_second_moment: Array | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the spatial ODC scales, in and out, on the GPU."""
    check_weight(weight)
    rows, cols = weight.shape
    device = weight.device
    with _running(_stages(rows, cols, device), device) as (stages, room):
        plain = plain_weight(weight)
        scale_in, scale_out = stages.diagonal_scales(
            **weight_arguments(plain),
            input_second_moment=moment_on_cpu(input_second_moment),
            output_second_moment=moment_on_cpu(output_second_moment),
            **room,
        )
        return (
            None if scale_in is None else _to(scale_in, device),
            None if scale_out is None else _to(scale_out, device),
        )


def dense(
    packed: _core.PackedMatrix, spec: MatrixSpec, codes: Tensor, device: torch.device
) -> Tensor:
    """Return the decoded weight of a matrix, (m, n) float32; ``codes`` are its own, anywhere."""
    rows, cols = spec.shape
    planned = _stages(
        rows, cols, device, spec.codec, spec.code_bits, spec.state_bits, rank=spec.rank
    )
    needed = planned.dense_workspace_bytes()
    with _running(planned, device, needed) as (stages, room):
        plain = codes.to(device).contiguous()
        weight = torch.empty(rows, cols, device=device)
        stages.dense(matrix=packed, codes=plain.data_ptr(), weight=weight.data_ptr(), **room)
    return weight


@lru_cache(maxsize=64)
def _planned(
    rows: int,
    cols: int,
    device: int,
    codec: str,
    code_bits: int,
    state_bits: int,
    rank: int,
    oversampling: int,
) -> _core.DeviceStages:
    options = _core.CompressionOptions(
        codec=codec,
        code_bits=code_bits,
        rank=rank,
        factor_bits=16,
        odc="none",
        signs=False,
        max_alternations=0,
        seed=0,
        state_bits=state_bits,
        unbiased=False,
        feedback=False,
    )
    return _core.DeviceStages(rows, cols, options, oversampling, device)


def _stages(
    rows: int,
    cols: int,
    device: torch.device,
    codec: str = "ring",
    code_bits: int = 1,
    state_bits: int = 0,
    *,
    rank: int = 0,
    oversampling: int = 0,
) -> _core.DeviceStages:
    """Return the stages of a weight (rows, cols), with their tables."""
    bits = state_bits if codec == "trellis" else 0
    return _planned(rows, cols, device.index, codec, code_bits, bits, rank, oversampling)


@contextmanager
def _running(
    stages: _core.DeviceStages, device: torch.device, workspace_bytes: int | None = None
) -> Iterator[tuple[_core.DeviceStages, dict[str, Any]]]:
    """Give stages a workspace on the current stream of their device, as their arguments."""
    needed = stages.workspace_bytes() if workspace_bytes is None else workspace_bytes
    what = f"the stage takes {mebibytes(needed)} beside what it reads and writes"
    with torch.cuda.device(device), memory_errors(lambda: what, _REMEDY):
        refuse_capture("a stage")
        workspace = torch.empty(needed, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
        room: dict[str, Any] = {
            "workspace": workspace.data_ptr(),
            "workspace_bytes": needed,
            "stream": stream,
        }
        yield stages, room


def _channels(half_rows: int) -> int:
    """Return output channels whose half spectrum has so many rows."""
    return max(2 * (half_rows - 1), 1)


def _check_rank(rank: int, rows: int, cols: int) -> None:
    if not 1 <= rank <= min(rows, cols):
        raise ValueError(
            f"rank is {rank}, expected 1 to {min(rows, cols)} for a complex matrix of shape "
            f"({rows}, {cols})"
        )


def _check_complex(array: Tensor, what: str) -> tuple[int, int]:
    if array.dtype not in (torch.complex64, torch.complex128):
        raise TypeError(
            f"{what} has dtype {dtype_name(array.dtype)}, expected complex64 or complex128"
        )
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{what} has shape {tuple(array.shape)}, expected (rows, columns)")
    rows, cols = array.shape
    return rows, cols


def _plain_complex(array: Tensor) -> Tensor:
    return array.detach().resolve_conj().resolve_neg().to(torch.complex64).contiguous()


def _to(array: ArrayT, device: torch.device) -> Tensor:
    return torch.as_tensor(array).to(device)

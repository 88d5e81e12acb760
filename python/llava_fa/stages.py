"""The stages between a weight and its codes, each as a function.

Tensors on an NVIDIA GPU are computed there, and so are the results (:mod:`llava_fa.device_stages`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, device_stages
from .arrays import (
    Array,
    ArrayT,
    as_kind,
    exportable,
    exportable_or_none,
    is_on_gpu,
    is_torch,
    to_numpy,
)
from .config import CompressionConfig


def half_spectrum(weight: ArrayT) -> ArrayT:
    """Return the half spectrum of an (m, n) weight, (m // 2 + 1, n) complex64.

    ``Ã[k] = ω_k (F_m W F_nᵀ)[k]`` with unitary DFTs and Parseval weights ω = √2, but 1 for k = 0
    and, for even m, k = m/2; then ``||Ã|| = ||W||``.
    """
    found: Any
    if is_on_gpu(weight):
        found = device_stages.half_spectrum(weight)
    else:
        found = as_kind(_core.half_spectrum(exportable(weight)), is_torch(weight))
    result: ArrayT = found
    return result


def inverse_half_spectrum(spectrum: ArrayT, output_channels: int) -> ArrayT:
    """Return the real (m, n) float32 matrix of a half spectrum; ``output_channels`` is m."""
    found: Any
    if is_on_gpu(spectrum):
        found = device_stages.inverse_half_spectrum(spectrum, output_channels)
    else:
        dense = _core.inverse_half_spectrum(exportable(spectrum), output_channels)
        found = as_kind(dense, is_torch(spectrum))
    result: ArrayT = found
    return result


def truncated_svd(
    matrix: ArrayT,
    rank: int,
    *,
    power_iterations: int = 2,
    oversampling: int | None = None,
    seed: int = 0,
    exact: bool = False,
    warm_start: ArrayT | None = None,
) -> tuple[ArrayT, ArrayT, ArrayT]:
    """Return ``(U, s, Vh)`` with ``matrix ≈ U diag(s) Vh``, U (rows, rank), Vh (rank, cols).

    Randomized block subspace iteration, or with ``exact`` the full decomposition. A ``warm_start``
    of right vectors (rank', cols) replaces the random block. The default ``oversampling`` brings
    the squared error within 1 % of the optimum even for flat spectra.
    """
    extra = _core.default_oversampling(rank) if oversampling is None else oversampling
    parts: Any
    if not is_on_gpu(matrix):
        source, start = exportable(matrix), exportable_or_none(warm_start)
        parts = _core.truncated_svd(source, rank, power_iterations, extra, seed, exact, start)
        parts = (as_kind(part, is_torch(matrix)) for part in parts)
    elif exact:
        parts = device_stages.exact_svd(matrix, rank)
    else:
        parts = device_stages.truncated_svd(matrix, rank, power_iterations, extra, seed, warm_start)
    left, values, right = parts
    return left, values, right


def polar_encode(
    values: ArrayT,
    code_bits: int,
    codec: str = "ring",
    *,
    state_bits: int = CompressionConfig.state_bits,
) -> tuple[ArrayT, ArrayT]:
    """Return packed codes, (rows, ceil(cols · code_bits / 8)) uint8, and row scales, float16.

    ``state_bits`` is the trellis' and ignored otherwise.
    """
    parts: Any
    if is_on_gpu(values):
        parts = device_stages.polar_encode(values, code_bits, codec, state_bits)
    else:
        parts = _core.polar_encode(exportable(values), codec, code_bits, state_bits)
        parts = (as_kind(part, is_torch(values)) for part in parts)
    codes, row_scale = parts
    return codes, row_scale


def polar_decode(
    codes: ArrayT,
    row_scale: ArrayT,
    cols: int,
    code_bits: int,
    codec: str = "ring",
    *,
    state_bits: int = CompressionConfig.state_bits,
) -> ArrayT:
    """Inverse of :func:`polar_encode`: (rows, cols) complex64."""
    found: Any
    if is_on_gpu(codes):
        found = device_stages.polar_decode(codes, row_scale, cols, code_bits, codec, state_bits)
    else:
        packed = np.ascontiguousarray(to_numpy(codes), dtype=np.uint8)
        scale = np.ascontiguousarray(to_numpy(row_scale), dtype=np.float16).view(np.uint16)
        values = _core.polar_decode(packed, scale, cols, codec, code_bits, state_bits)
        found = as_kind(values, is_torch(codes))
    result: ArrayT = found
    return result


def diagonal_scales(
    weight: ArrayT,
    input_second_moment: Array | None = None,
    output_second_moment: Array | None = None,
) -> tuple[ArrayT | None, ArrayT | None]:
    """Return the spatial ODC scales, in (n,) and out (m,); None where not worth their bits.

    ``W = diag(out) W̄ diag(in)`` with W̄ the matrix that is transformed and coded.
    """
    parts: Any
    if is_on_gpu(weight):
        parts = device_stages.diagonal_scales(weight, input_second_moment, output_second_moment)
    else:
        parts = _core.diagonal_scales(
            exportable(weight),
            exportable_or_none(input_second_moment),
            exportable_or_none(output_second_moment),
        )
        parts = (None if part is None else as_kind(part, is_torch(weight)) for part in parts)
    scale_in, scale_out = parts
    return scale_in, scale_out


def constellation(codec: str, code_bits: int) -> dict[str, Any]:
    """Return the rings ``(radius, phases, phase offset)`` of a codec and its design distortion."""
    described: dict[str, Any] = _core.constellation(codec, code_bits)
    return described

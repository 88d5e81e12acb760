"""Would products in TF32, as tensor cores have it, change the errors of a compression?

Emulated on the CPU: operands rounded to 10 bits of mantissa, products exact, sums in float32. Three
products that GPUs compute in float32: those that find a low rank, the corrections under error
feedback, and the updates that factor its filter. Written again in plain torch, for one setting
each, because the library has nothing to round there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import matrices, support
from bench.plain_constellation import ring
from bench.plain_torch import half_spectrum

BLOCK = 64
OVERSAMPLING = 10
DAMPING = 0.01
Rounding = Callable[[Tensor], Tensor]


def plain(values: Tensor) -> Tensor:
    """Float32 as it is."""
    return values


def tf32(values: Tensor) -> Tensor:
    """Round to 10 bits of mantissa, halves away from zero."""
    if values.is_complex():
        return torch.view_as_complex(tf32(torch.view_as_real(values.resolve_conj())))
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def low_rank_error(matrix: Tensor, rank: int, rounded: Rounding) -> float:
    """Relative squared error of a randomized truncated SVD with two power iterations."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return rounded(a) @ rounded(b)

    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(
        matrix.shape[1], rank + OVERSAMPLING, dtype=torch.complex64, generator=generator
    )
    basis = torch.linalg.qr(product(matrix, sketch))[0]
    for _ in range(2):
        other = torch.linalg.qr(product(matrix.mH, basis))[0]
        basis = torch.linalg.qr(product(matrix, other))[0]
    left, values, right = torch.linalg.svd(product(basis.mH, matrix), full_matrices=False)
    left = basis @ left[:, :rank] * values[:rank]
    return float((matrix - left @ right[:rank]).norm() ** 2 / matrix.norm() ** 2)


def moment_spectrum(channels: int) -> Tensor:
    """``conj(F) Sigma F^T`` of inputs that go together and differ in size, damped."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4 * channels, channels, generator=generator)
    inputs *= torch.randn(channels, generator=generator).exp()
    shared = torch.randn(4 * channels, 32, generator=generator)
    inputs += shared @ torch.randn(32, channels, generator=generator)
    moment = inputs.T @ inputs / len(inputs)
    rows = torch.fft.fft(moment.to(torch.complex128), dim=1, norm="ortho")
    spectrum = torch.fft.ifft(rows, dim=0, norm="ortho")
    level = spectrum.diagonal().real.mean()
    return (spectrum + DAMPING * level * torch.eye(channels)).to(torch.complex64)


def cholesky(matrix: Tensor, rounded: Rounding) -> Tensor:
    """Lower factor by blocks, whose updates of what is left are the rounded products."""
    rest, factor = matrix.clone(), torch.zeros_like(matrix)
    for begin in range(0, len(matrix), BLOCK):
        end = begin + BLOCK
        tile = torch.linalg.cholesky(rest[begin:end, begin:end])
        below = torch.linalg.solve_triangular(tile, rest[begin:end, end:], upper=False).mH
        factor[begin:end, begin:end], factor[end:, begin:end] = tile, below
        rest[end:, end:] -= rounded(below) @ rounded(below).mH
    return factor


def output_error(spectrum: Tensor, moment: Tensor, bits: int, rounded: Rounding) -> float:
    """Relative output error of codes under error feedback, corrections by blocks."""
    points = torch.from_numpy(ring(bits).points).to(torch.complex64)
    filter_ = torch.linalg.cholesky(torch.linalg.inv(moment)).mH
    scale = spectrum.abs().square().mean(dim=1, keepdim=True).sqrt()
    target, errors = spectrum / scale, torch.zeros_like(spectrum)
    coded = torch.zeros_like(spectrum)
    for begin in range(0, spectrum.shape[1], BLOCK):
        end = begin + BLOCK
        for column in range(begin, end):
            near = (target[:, column, None] - points).abs().argmin(dim=1)
            coded[:, column] = points[near]
            errors[:, column] = (target[:, column] - points[near]) / filter_[column, column]
            after = slice(column + 1, end)
            target[:, after] -= errors[:, column, None] * filter_[column, after]
        target[:, end:] -= rounded(errors[:, begin:end]) @ rounded(filter_[begin:end, end:])

    def weighted(values: Tensor) -> float:
        exact = values.to(torch.complex128)
        return float((exact @ moment.to(torch.complex128) * exact.conj()).real.sum())

    return weighted(spectrum - coded * scale) / weighted(spectrum)


def rows_of(size: int) -> list[dict[str, Any]]:
    """Both arithmetics side by side, for square matrices."""
    weights = {
        "gaussian": matrices.gaussian((size, size)),
        "outlier channels": matrices.outlier_channels((size, size)),
        "low rank plus noise": matrices.low_rank_plus_noise((size, size)),
    }
    moment = moment_spectrum(size)
    rows = []

    def compare(what: str, weight: str, error: Callable[[Rounding], float]) -> None:
        exact, coarse = error(plain), error(tf32)
        figures = {"float32": exact, "TF32": coarse, "ratio": coarse / exact}
        rows.append({"error": what, "weight": weight, **figures})

    for name, weight in weights.items():
        spectrum = half_spectrum(weight)
        for rank in (16, 64):
            compare(f"rank {rank}", name, lambda r, s=spectrum, k=rank: low_rank_error(s, k, r))
        for bits in (4, 8):
            what = f"output, feedback, {bits // 2} bits"
            compare(what, name, lambda r, s=spectrum, b=bits: output_error(s, moment, b, r))

    def factored(rounded: Rounding) -> float:
        factor = cholesky(moment, rounded)
        return float((factor @ factor.mH - moment).norm() / moment.norm())

    compare("L L^H of the filter", "", factored)
    return rows


def main() -> None:
    """Measure and publish."""
    arguments = support.parser(__doc__, "tf32").parse_args()
    rows = rows_of(128 if arguments.quick else 1024)
    support.publish("tf32", arguments.json, {"Errors": rows}, {})


if __name__ == "__main__":
    main()

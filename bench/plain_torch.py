"""What does the same method cost, and give, in plain torch? The baseline of speed and accuracy.

One weight matrix, the steps of the method in the order of the pipeline, each a short function:

1. ``diagonal_scales``: channel scales from second moments;
2. ``random_signs``: seeded signs of rows and columns;
3. ``half_spectrum`` / ``inverse_half_spectrum``: rows 0..m/2 of the unitary 2-D DFT, Parseval
   weights;
4. ``truncated_svd``: block subspace iteration with a warm start, or the exact decomposition;
5. ``encode`` / ``decode``: nearest ring by table, then nearest phase; one float16 scale per row;
6. ``alternate``: low rank and code in turn, on the stored values;
7. ``compress``: all of it, back to a dense matrix, stored bits counted.

Nothing is shared with the library, so agreement of the two is evidence for both. It is written as
a careful user of torch would write it: vectorized, no loops over entries, single precision.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.plain_constellation import DESIGNS, Constellation


@dataclass(frozen=True)
class PlainConfig:
    """Settings under the names of ``llava_fa.CompressionConfig``, plus ``exact_svd``."""

    bits: float = 4.0
    codec: str = "ring"
    rank: int = 0
    factor_bits: int = 8
    odc: str = "spatial"
    signs: bool = True
    max_alternations: int = 10
    seed: int = 0
    exact_svd: bool = False


@dataclass(frozen=True)
class PlainResult:
    """Outcome: the dense reconstruction, the stored bits, the objective after every alternation.

    The objective is relative: ``||A - L - Q||^2 / ||A||^2`` in the scaled, signed spectrum.
    """

    dense: Tensor
    stored_bits: int
    objective: list[float] = field(default_factory=list)

    @property
    def bits_per_weight(self) -> float:
        """All stored bits over the number of weights."""
        return self.stored_bits / self.dense.numel()


def diagonal_scales(
    weight: Tensor,
    input_second_moment: Tensor | None = None,
    output_second_moment: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Row and column scales ``(t_i / w_i)^1/2`` and ``(s_j / w_j)^1/2`` in float16 precision.

    ``w`` is the root mean square of the row or column, ``s`` or ``t`` is 1 without data and damped
    with it: the square plus a tenth of the mean square. Scaling
    lowers the noise by ``(sum s w)^2 / (sum s^2 sum w^2)``; a side whose 16 bits per channel would
    lower it more if spent on the code (a bit per weight divides it by four) stays at 1.
    """

    def one_side(second_moment: Tensor | None, axis: int) -> Tensor:
        size = weight.double().square().mean(dim=axis).sqrt()
        square = torch.ones_like(size) if second_moment is None else second_moment.double()
        signal = (square + (0 if second_moment is None else 0.1 * square.mean())).sqrt()
        gain = (signal * size).sum() ** 2 / (signal.square().sum() * size.square().sum())
        if not gain < 2 ** (-2 * 16 / weight.shape[axis]):
            return torch.ones(len(size))
        used = (signal > 0) & (size > 0)
        scale = torch.where(used, signal, 1).div(torch.where(used, size, 1)).sqrt()
        scale = torch.where(used, scale / scale[used].log().mean().exp(), 1)
        return scale.clamp(2.0**-8, 2.0**8).half().float()

    return one_side(output_second_moment, 1), one_side(input_second_moment, 0)


def random_signs(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random signs for rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(0, 2, (rows,), generator=generator).float() * 2 - 1
    column = torch.randint(0, 2, (columns,), generator=generator).float() * 2 - 1
    return row, column


def parseval_weights(rows: int) -> Tensor:
    """sqrt(2) for rows that stand for themselves and their mirror, 1 for rows 0 and m/2."""
    weights = torch.full((rows // 2 + 1,), 2.0**0.5)
    weights[0] = 1.0
    if rows % 2 == 0:
        weights[-1] = 1.0
    return weights


def half_spectrum(weight: Tensor) -> Tensor:
    """Rows 0..m/2 of ``F_m W F_n^T`` times the Parseval weights, (m//2 + 1, n) complex64."""
    spectrum = torch.fft.rfft2(weight.T, norm="ortho").T
    return (spectrum * parseval_weights(weight.shape[0])[:, None]).contiguous()


def inverse_half_spectrum(spectrum: Tensor, rows: int) -> Tensor:
    """The real (rows, n) matrix whose half spectrum is nearest to ``spectrum``."""
    plain = spectrum / parseval_weights(rows)[:, None]
    return torch.fft.irfft2(plain.T, s=(spectrum.shape[1], rows), norm="ortho").T


def truncated_svd(
    matrix: Tensor, rank: int, *, start: Tensor | None = None, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """Factors (h, r), (r, n) of the best rank-r approximation, singular values shared equally.

    ``start`` is a previous right factor: one pass suffices from there. From random vectors
    (oversampled by 8) two power iterations are made.
    """
    if exact:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        passes = 2
        if start is None:
            width = min(rank + 8, *matrix.shape)
            generator = torch.Generator().manual_seed(0)
            basis = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, generator=generator)
        else:
            basis, passes = start.mH, 0
        left = torch.linalg.qr(matrix @ basis).Q
        for _ in range(passes):
            right = torch.linalg.qr(matrix.mH @ left).Q
            left = torch.linalg.qr(matrix @ right).Q
        u, s, vh = torch.linalg.svd(left.mH @ matrix, full_matrices=False)
        u = left @ u
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


def encode(values: Tensor, code: Constellation, nearest: bool = False) -> tuple[Tensor, Tensor]:
    """Code every complex row: indices (rows, n) and float16 row scales.

    By default the ring follows from the magnitude (thresholds) and the phase from rounding, as in
    the design; ``nearest=True`` compares with every point instead (slow, the better decision).
    The scale is refitted by least squares after coding.
    """
    values = values.contiguous()
    magnitude = values.abs()
    if code.scale_by_peak:
        scale = magnitude.amax(dim=1, keepdim=True)
    else:
        scale = magnitude.square().mean(dim=1, keepdim=True).sqrt()
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    decide = _nearest_points if nearest else _ring_then_phase
    chunk = max(1, 2**20 // values.shape[1])
    indices = torch.cat(
        [
            decide(values[i : i + chunk] / scale[i : i + chunk], code)
            for i in range(0, len(values), chunk)
        ]
    )
    points = torch.from_numpy(code.points).to(values.dtype)[indices]
    energy = points.abs().square().sum(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    fitted = (values * points.conj()).real.sum(dim=1) / energy
    return indices, fitted.half()


def _ring_then_phase(values: Tensor, code: Constellation) -> Tensor:
    """Indices by magnitude threshold and rounded phase (phase first for projecting codes)."""
    thresholds = torch.from_numpy(code.thresholds).float()
    phases, starts = torch.from_numpy(code.phases), torch.from_numpy(code.starts)
    turn = values.angle() / (2 * torch.pi)
    magnitude = values.abs()
    if code.project:
        count = float(code.phases[0])
        offset = turn - (turn * count).round() / count
        magnitude = magnitude * (2 * torch.pi * offset).cos()
    ring = torch.bucketize(magnitude, thresholds)
    count = phases[ring]
    return starts[ring] + (turn * count).round().long() % count


def _nearest_points(values: Tensor, code: Constellation) -> Tensor:
    """Indices of the nearest points by comparison with all of them."""
    points = torch.from_numpy(code.points).to(values.dtype)
    flat = torch.view_as_real(values.reshape(-1))
    table = torch.view_as_real(points)
    distance = table.square().sum(dim=1) - 2 * flat @ table.T
    return distance.argmin(dim=1).reshape(values.shape)


def decode(indices: Tensor, scale: Tensor, code: Constellation) -> Tensor:
    """Complex rows from indices and row scales."""
    points = torch.from_numpy(code.points).to(torch.complex64)
    return points[indices] * scale.float()[:, None]


def store_factors(left: Tensor, right: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The two factors as they are after storage: ring codes, one scale per component."""
    if bits == 16:
        halves = [torch.view_as_real(x).half().float() for x in (left, right)]
        return torch.view_as_complex(halves[0]), torch.view_as_complex(halves[1])
    code = DESIGNS["ring"](bits)
    stored_left = decode(*encode(left.T.contiguous(), code), code).T
    return stored_left, decode(*encode(right, code), code)


def alternate(spectrum: Tensor, config: PlainConfig) -> tuple[Tensor, list[float]]:
    """Low rank and code in turn, ``A ~ L + Q``; the best iterate and every relative objective.

    (a) L is the truncated SVD of A - Q, stored; (b) Q is the code of A - L. Ends when the
    objective rises or improves by less than 0.1 %; L is then fitted once more.
    """
    code = DESIGNS[config.codec](round(2 * config.bits))
    energy = spectrum.abs().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    if config.rank == 0:
        coded = decode(*encode(spectrum, code), code)
        return coded, [float((spectrum - coded).abs().square().sum() / energy)]
    rank = min(config.rank, *spectrum.shape)
    best, history = (spectrum, spectrum), []
    coded, start = torch.zeros_like(spectrum), None
    for _ in range(config.max_alternations):
        left, right = truncated_svd(spectrum - coded, rank, start=start, exact=config.exact_svd)
        start = right
        left, right = store_factors(left, right, config.factor_bits)
        residual = torch.addmm(spectrum, left, right, alpha=-1)
        coded = decode(*encode(residual, code), code)
        history.append(float((residual - coded).abs().square().sum() / energy))
        if len(history) == 1 or history[-1] < min(history[:-1]):
            best = (spectrum - residual, coded)
        if len(history) > 1 and history[-1] > 0.999 * history[-2]:
            break
    return _refitted(spectrum, best, history, config, start)


def _refitted(
    spectrum: Tensor,
    best: tuple[Tensor, Tensor],
    history: list[float],
    config: PlainConfig,
    start: Tensor | None,
) -> tuple[Tensor, list[float]]:
    """Fit L once more to the best Q and keep whichever L is better."""
    low_rank, coded = best
    factors = truncated_svd(
        spectrum - coded,
        len(start) if start is not None else 1,
        start=start,
        exact=config.exact_svd,
    )
    left, right = store_factors(*factors, config.factor_bits)
    energy = spectrum.abs().square().sum()
    objective = float((spectrum - coded - left @ right).abs().square().sum() / energy)
    if objective < min(history):
        return left @ right + coded, [*history, objective]
    return low_rank + coded, history


def count_bits(rows: int, columns: int, config: PlainConfig, channel_scales: int) -> int:
    """All stored bits: codes and factors padded to bytes row by row, scales, matrix scale."""
    half = rows // 2 + 1

    def packed(count: int, bits: int) -> int:
        return 8 * -(-count * bits // 8)

    bits = half * (packed(columns, round(2 * config.bits)) + 16) + 32 + 16 * channel_scales
    rank = min(config.rank, half, columns)
    width = 32 if config.factor_bits == 16 else config.factor_bits
    factor = packed(half, width) + packed(columns, width)
    return bits + rank * (factor + (0 if config.factor_bits == 16 else 32))


def compress(
    weight: Tensor,
    config: PlainConfig,
    *,
    input_second_moment: Tensor | None = None,
    output_second_moment: Tensor | None = None,
) -> PlainResult:
    """Compress one (out, in) matrix and return its reconstruction; see the module's docstring."""
    weight = weight.float()
    rows, columns = weight.shape
    row, column = torch.ones(rows), torch.ones(columns)
    if config.odc == "spatial":
        row, column = diagonal_scales(weight, input_second_moment, output_second_moment)
    scales = sum(len(x) for x in (row, column) if not bool((x == 1).all()))
    if config.signs:
        row_sign, column_sign = random_signs(rows, columns, config.seed)
        row, column = row * row_sign, column * column_sign
    scaled = weight * row[:, None] * column[None, :]
    # The spectrum's rows enter at unit mean square, so that float16 scales neither overflow nor
    # underflow; this is the matrix scale, one float32.
    unit = scaled.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    spectrum, history = alternate(half_spectrum(scaled / unit), config)
    dense = inverse_half_spectrum(spectrum, rows) * unit / row[:, None] / column[None, :]
    return PlainResult(dense, count_bits(rows, columns, config, scales), history)


def relative_error(weight: Tensor, approximation: Tensor) -> float:
    """Squared Frobenius norm of the difference over that of ``weight``."""
    weight = weight.double()
    return float((weight - approximation.double()).square().sum() / weight.square().sum())


def main() -> None:
    """Compress one random matrix and print its error: a quick look at the baseline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--codec", choices=sorted(DESIGNS), default="ring")
    parser.add_argument("--rank", type=int, default=0)
    arguments = parser.parse_args()
    weight = torch.randn(arguments.rows, arguments.columns)
    result = compress(
        weight, PlainConfig(bits=arguments.bits, codec=arguments.codec, rank=arguments.rank)
    )
    print(f"stored bits per weight {result.bits_per_weight:.3f}")
    print(f"relative squared error {relative_error(weight, result.dense):.5f}")
    print(f"objective              {[round(value, 6) for value in result.objective]}")


if __name__ == "__main__":
    main()

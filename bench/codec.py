"""How near do the codes for complex numbers come to the design's table and to Shannon's limit?

1. Distortion of every codec at 1 to 10 bits per complex entry on a million unit-power circular
   Gaussian samples, against the design's table, the plain implementation and the limit 2^-B; the
   trellis, which is coded down columns of 256 rows, with 12 and 14 state bits.
2. The same on real spectra: rows of half spectra of several kinds of matrices and of the tiny
   model's, with and without random signs, as a ratio to the Gaussian figure. Ratios near 1 say
   that signs and transform make any weights look Gaussian to the code.

Everything coded goes through ``llava_fa.polar_encode`` and ``llava_fa.polar_decode``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import matrices, plain_torch, support, tiny_model
from bench.plain_constellation import DESIGNS
from llava_fa import polar_decode, polar_encode

CODECS = ("ring", "product", "uniform")
WIDTHS = tuple(range(1, 11))
TOLERANCE = 0.02
TABLE: dict[str, dict[int, float]] = {
    "ring": {2: 0.363, 3: 0.2036, 4: 0.1093, 5: 0.0583, 6: 0.0306, 7: 0.0157, 8: 0.0082},
    "product": {4: 0.1198, 5: 0.0716, 6: 0.0349, 7: 0.0190, 8: 0.0095},
    "uniform": {4: 0.245, 6: 0.057, 8: 0.0111},
}
"""The design's figures for a circular Gaussian of unit power."""

TRELLIS_TABLE = {
    (2, 12): 0.2715,
    (4, 12): 0.0729,
    (4, 14): 0.0696,
    (6, 14): 0.0186,
    (8, 14): 0.0053,
}
"""The same for the trellis, by code bits and state bits."""

TRELLIS_BOUNDS = {(4, 12): 0.0735, (4, 14): 0.0700, (6, 14): 0.0190, (8, 14): 0.0054}
"""What the project promised of the trellis, by code bits and state bits."""

TRELLIS_ROWS = 256


def distortion(values: Tensor, codec: str, bits: int, **options: int) -> float:
    """Squared error after the library's coding of complex rows, relative to their energy.

    ``options`` are those of ``polar_encode`` and ``polar_decode``.
    """
    codes, row_scale = polar_encode(values, bits, codec, **options)
    decoded = polar_decode(codes, row_scale, values.shape[1], bits, codec, **options)
    return _relative(values, decoded)


def plain_distortion(values: Tensor, codec: str, bits: int) -> float:
    """Return the same for the plain implementation (rings by threshold, no phase offsets)."""
    code = DESIGNS[codec](bits)
    return _relative(values, plain_torch.decode(*plain_torch.encode(values, code), code))


def _relative(values: Tensor, decoded: Tensor) -> float:
    error = (values - decoded).abs().double().square().sum()
    return float(error / values.abs().double().square().sum())


def verdict(measured: float, expected: float | None) -> str:
    """Compare with the table: within the tolerance, better than it, or worse."""
    if expected is None:
        return "not in the table"
    ratio = measured / expected
    if abs(ratio - 1) <= TOLERANCE:
        return "within 2 %"
    return "better than the table" if ratio < 1 else "worse than the table"


def gaussian_rows(samples: int, length: int) -> Tensor:
    """Unit-power circular Gaussian samples, at least so many, in rows of ``length``."""
    generator = torch.Generator().manual_seed(20)
    return torch.randn(-(-samples // length), length, dtype=torch.complex64, generator=generator)


def on_gaussians(samples: int, widths: Sequence[int]) -> list[dict[str, Any]]:
    """Code Gaussian samples with every codec and width."""
    values = gaussian_rows(samples, 4096)
    rows = []
    for codec in CODECS:
        for bits in widths:
            measured, plain = distortion(values, codec, bits), plain_distortion(values, codec, bits)
            rows.append(gaussian_row(codec, bits, measured, TABLE[codec].get(bits), plain))
    return rows


def trellis_on_gaussians(samples: int, widths: Sequence[int]) -> list[dict[str, Any]]:
    """Code Gaussian samples with the trellis: all widths at 12 state bits, the table's at 14."""
    pairs = sorted({*((bits, 12) for bits in widths if bits <= 8), *TRELLIS_TABLE})
    values = gaussian_rows(samples, -(-samples // TRELLIS_ROWS))
    rows = []
    for bits, states in pairs:
        measured = distortion(values, "trellis", bits, state_bits=states)
        label = f"trellis, {states} state bits"
        rows.append(gaussian_row(label, bits, measured, TRELLIS_TABLE.get((bits, states))))
    return rows


def trellis_targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check the promises on the rows of ``trellis_on_gaussians``."""
    measured = {(row["codec"], row["B"]): row["distortion"] for row in rows}
    found = []
    for (bits, states), bound in TRELLIS_BOUNDS.items():
        label = f"trellis, {states} state bits"
        value = measured[label, bits]
        target = f"{label}, B = {bits}: distortion"
        found.append({"target": target, "measured": value, "bound": bound, "met": value <= bound})
    return found


def gaussian_row(
    codec: str, bits: int, measured: float, expected: float | None, plain: float | None = None
) -> dict[str, Any]:
    """One row: what was measured against the table, the plain implementation and the limit."""
    return {
        "codec": codec,
        "B": bits,
        "bits per weight": bits / 2,
        "distortion": measured,
        "table": expected,
        "ratio to table": measured / expected if expected else None,
        "verdict": verdict(measured, expected),
        **({} if plain is None else {"plain torch": plain}),
        "Shannon": 2.0**-bits,
        "ratio to Shannon": measured * 2**bits,
    }


def sources(size: int, model: Path) -> dict[str, list[Tensor]]:
    """Weight matrices by kind: synthetic ones, and the tiny model's by tower if it is there."""
    found = {kind: [make((size, size * 3 // 4), seed=4)] for kind, make in matrices.KINDS.items()}
    for name, weight in tiny_model.linear_weights(model).items():
        found.setdefault(f"tiny model, {tiny_model.part_of(name)}", []).append(weight)
    return found


def on_spectra(size: int, model: Path, gaussian: dict[tuple[str, int], float]) -> list[Any]:
    """Each codec on half spectra of real and synthetic matrices, with and without signs."""
    rows = []
    for kind, weights in sources(size, model).items():
        row: dict[str, Any] = {"weights": kind, "matrices": len(weights)}
        for codec, bits in (("ring", 4), ("ring", 6), ("ring", 8), ("uniform", 6)):
            for signs in (True, False):
                mean = sum(spectral_distortion(w, codec, bits, signs) for w in weights)
                ratio = mean / len(weights) / gaussian[codec, bits]
                row[f"{codec} B={bits}{'' if signs else ', no signs'}"] = ratio
        rows.append(row)
    return rows


def spectral_distortion(weight: Tensor, codec: str, bits: int, signs: bool) -> float:
    """Relative squared error of coding a matrix's half spectrum."""
    weight = weight.float()
    if signs:
        row, column = plain_torch.random_signs(weight.shape[0], weight.shape[1], seed=6)
        weight = weight * row[:, None] * column
    spectrum = plain_torch.half_spectrum(weight / weight.square().mean().sqrt())
    return distortion(spectrum, codec, bits)


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "codec")
    parser.add_argument("--samples", type=int, default=1_000_000, help="Gaussian samples")
    parser.add_argument("--size", type=int, default=1024, help="rows of the synthetic matrices")
    parser.add_argument("--model", type=Path, default=tiny_model.DEFAULT_MODEL)
    arguments = parser.parse_args()
    widths = WIDTHS
    if arguments.quick:
        arguments.samples, arguments.size, widths = 50_000, 128, (4, 6, 8)
    gaussian = on_gaussians(arguments.samples, widths)
    figures = {(row["codec"], row["B"]): row["distortion"] for row in gaussian}
    trellis = trellis_on_gaussians(arguments.samples // 4, widths)
    checked = [row for row in gaussian if row["table"] and row["codec"] != "uniform"]
    support.publish(
        "codec",
        arguments.json,
        {
            "Unit-power circular Gaussian": gaussian,
            "Trellis on a unit-power circular Gaussian": trellis,
            "Targets": trellis_targets(trellis),
            "Real spectra, ratio to the Gaussian figure": on_spectra(
                arguments.size, arguments.model, figures
            ),
        },
        {
            "samples": arguments.samples,
            "worst_ratio_to_table": max(row["ratio to table"] for row in checked),
            "trellis_worst_ratio_to_table": max(row["ratio to table"] or 0.0 for row in trellis),
            "reaches_table": all(row["ratio to table"] <= 1 + TOLERANCE for row in checked),
        },
    )


if __name__ == "__main__":
    main()

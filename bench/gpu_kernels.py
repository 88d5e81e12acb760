"""How far is every kernel on a GPU from what its memory or its arithmetic allow?

One layer of LLaVA-1.5-7B, 11008 x 4096, in works that launch all kinds of kernels. For each: what
all launches of a kernel together must read and write, and compute, counted from the algorithm; the
longer one of the times that this takes at the device's rates is the bound. An instruction is one
multiply-add, addition or comparison per lane; loads, addresses and conversions are not counted.
Kernels of few blocks have the share of the arithmetic that their multiprocessors have.

Without a GPU ``python -m bench.performance`` states the bounds for an H200 by its data sheet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from bench import support
from llava_fa import CompressionConfig

ROWS, COLS = 11008, 4096
RANK, OVERSAMPLING = 64, 10
TOKENS = 2048
STATES = CompressionConfig(codec="trellis").state_bits
COMPLEX, POINT, WEIGHT, MOMENT, HALF = 8, 2, 2, 4, 2  # bytes
COMPLEX_PRODUCT = 4  # multiply-adds
BLOCK = 64  # columns of the filter
SEARCH = 5 * 1.5  # instructions per state and entry, seams of 256 rows included
SEGMENT_ROWS, FEEDBACK_ROWS = 256, 32  # of a spectrum, that a block of threads codes


@dataclass(frozen=True)
class Rates:
    """What a device does per second: bytes, instructions of its lanes, tensor cores' FLOPs."""

    memory: float
    single: float
    double: float
    tensor: float
    multiprocessors: int


# NVIDIA's data sheet; a multiply-add counts as two FLOPs there, as one instruction here.
H200 = Rates(memory=4.8e12, single=67e12 / 2, double=34e12 / 2, tensor=989e12, multiprocessors=132)


@dataclass(frozen=True)
class Work:
    """What all launches of one kernel do: bytes, instructions, FLOPs; blocks if they are few."""

    kernel: str
    memory: float = 0
    single: float = 0
    double: float = 0
    tensor: float = 0
    blocks: int | None = None

    def bound(self, rates: Rates) -> tuple[float, str]:
        """Return the seconds that this takes at least, and what limits it."""
        share = min(1.0, (self.blocks or math.inf) / rates.multiprocessors)
        limits = {
            "memory": self.memory / rates.memory,
            "float32": self.single / (rates.single * share),
            "float64": self.double / (rates.double * share),
            "tensor cores": self.tensor / rates.tensor,
        }
        name, seconds = max(limits.items(), key=lambda item: item[1])
        if share < 1 and name.startswith("float"):
            name += f" of {self.blocks} multiprocessor{'s' * (self.blocks != 1)}"
        return seconds, name


def transform(length: int) -> float:
    """Instructions of a complex FFT, 5 n log2 n."""
    return 5 * length * math.log2(length)


def half_rows(rows: int) -> int:
    return rows // 2 + 1


def spectrum_of(rows: int, cols: int, item: int) -> list[Work]:
    """Real columns to half spectra, then their rows, in place."""
    kept = half_rows(rows) * cols * COMPLEX
    return [
        Work("ColumnSpectra", rows * cols * item + kept, single=cols * transform(rows) / 2),
        Work("RowSpectra", 2 * kept, single=half_rows(rows) * transform(cols)),
    ]


def compression(bits: float) -> list[Work]:
    """A weight to codes of a constellation, channel scales found but not stored."""
    entries, weight = half_rows(ROWS) * COLS, ROWS * COLS
    return [
        Work("RowEnergies", weight * WEIGHT, double=weight),
        Work("ColumnEnergies", weight * WEIGHT, double=weight),
        *spectrum_of(ROWS, COLS, WEIGHT),
        Work("RowSizes", entries * COMPLEX, single=2 * entries),
        Work("NearestPoints", entries * (COMPLEX + POINT)),
        Work("RowSums", entries * (COMPLEX + POINT), double=6 * entries),
        Work("PackRows", entries * (POINT + bits / 4)),
    ]


def search() -> list[Work]:
    """A spectrum to codes of the trellis."""
    entries = half_rows(ROWS) * COLS
    return [Work("TrellisSearch", entries * (COMPLEX + POINT), single=SEARCH * entries * 2**STATES)]


def low_rank() -> list[Work]:
    """One alternation and the refit: two decompositions, the first with two power iterations."""
    kept, columns = half_rows(ROWS), RANK + OVERSAMPLING
    entries, spectrum = kept * COLS, kept * COLS * COMPLEX
    thin = (kept + COLS) * columns  # entries of a basis and of a co-basis
    product, bases = COMPLEX_PRODUCT * entries * columns, 4  # of each of these
    small = 2 * bases * thin * columns + 2 * thin * RANK
    return [
        Work(
            "Multiply",
            4 * (spectrum + thin * COMPLEX) + 2 * (2 * bases + 2) * thin * COMPLEX,
            single=4 * product + COMPLEX_PRODUCT * small,
        ),
        Work("MultiplyAdjoint", 4 * (spectrum + thin * COMPLEX), single=4 * product),
        Work("Gram", 2 * bases * thin * COMPLEX, double=2 * bases * thin * columns * 2),
        Work("Triangle", double=4 * bases * COMPLEX_PRODUCT * columns**3 / 3, blocks=1),
        Work("SubtractCodes", 2 * (2 * spectrum + entries * POINT)),
        Work("SubtractLowRank", 4 * spectrum, single=2 * COMPLEX_PRODUCT * entries * RANK),
    ]


def feedback() -> list[Work]:
    """A second moment to its filter, and codes under it, a spectrum given."""
    entries, square = half_rows(ROWS) * COLS, COLS * COLS
    spectrum, steps = entries * COMPLEX, COLS // BLOCK
    panels = sum((COLS - first - BLOCK) * BLOCK for first in range(0, COLS, BLOCK))
    trailing = sum((COLS - first - BLOCK) ** 2 / 2 for first in range(0, COLS, BLOCK))
    rows = math.ceil(half_rows(ROWS) / FEEDBACK_ROWS)
    return [
        Work("AssembleMoment", (square / 2 + square / 2) * COMPLEX),
        Work("FactorTile", single=steps * COMPLEX_PRODUCT * BLOCK**3 / 3, blocks=1),
        Work("Multiply", 2 * panels * COMPLEX, single=COMPLEX_PRODUCT * panels * BLOCK),
        Work("UpdateTrailing", 2 * trailing * COMPLEX, single=COMPLEX_PRODUCT * trailing * BLOCK),
        Work("FillFilter", square * (COMPLEX / 2 + MOMENT)),
        Work(
            "FeedbackTargets",
            (steps + 1) * spectrum + 2 * spectrum,
            single=2 * COMPLEX_PRODUCT * entries * (COLS - BLOCK) / 2,
        ),
        Work(
            "EncodeBlock",
            4 * spectrum + entries * POINT,
            single=2 * COMPLEX_PRODUCT * entries * BLOCK / 2,
            blocks=rows,
        ),
    ]


def weighting() -> list[Work]:
    """Errors under the filter: of all entries, before two decompositions, of the refit."""
    entries, times = half_rows(ROWS) * COLS, 4
    return [
        Work(
            "ApplyFilter",
            times * (2 * entries * COMPLEX + COLS**2 * MOMENT),
            single=times * COMPLEX_PRODUCT * entries * COLS / 2,
        )
    ]


def decoding(bits: float) -> list[Work]:
    """Codes to a dense weight."""
    entries, spectrum = half_rows(ROWS) * COLS, half_rows(ROWS) * COLS * COMPLEX
    return [
        Work("DecodeRows", entries * bits / 4 + spectrum),
        Work("RowSpectra", 2 * spectrum, single=half_rows(ROWS) * transform(COLS)),
        Work(
            "InverseColumnSpectra",
            spectrum + ROWS * COLS * 4,
            single=COLS * transform(ROWS) / 2,
        ),
    ]


def one_token(bits: float) -> list[Work]:
    """One activation, bfloat16."""
    entries, kept = half_rows(ROWS) * COLS, half_rows(ROWS)
    parts = math.ceil(COLS / 1024) * 2 * kept * 4
    return [
        Work("SpectrumKernel", COLS * (HALF + 4) + COLS * 4, blocks=1, single=transform(COLS) / 2),
        Work("PointProduct", entries * bits / 4 + parts, single=COMPLEX_PRODUCT * entries),
        Work(
            "InverseSpectrumKernel",
            parts + ROWS * (4 + HALF),
            blocks=1,
            single=transform(ROWS) / 2,
        ),
    ]


def low_rank_product() -> list[Work]:
    """What a low rank adds to one activation."""
    kept = half_rows(ROWS)
    return [
        Work(
            "LowRankInner",
            (RANK + 0.5) * COLS * COMPLEX,
            single=COMPLEX_PRODUCT * RANK * COLS,
            blocks=RANK,
        ),
        Work("LowRankOuter", (RANK + 1) * kept * COMPLEX, single=COMPLEX_PRODUCT * RANK * kept),
    ]


def many_tokens(bits: float) -> list[Work]:
    """2048 activations, bfloat16."""
    kept, dense = half_rows(ROWS), 2 * half_rows(ROWS) * COLS
    spectra, results = TOKENS * COLS * 4, TOKENS * 2 * kept * 4
    return [
        Work("SpectrumKernel", TOKENS * COLS * HALF + spectra, single=TOKENS * transform(COLS) / 2),
        Work("FoldActivations", spectra + TOKENS * COLS * HALF),
        Work("DecodePanels", dense * (bits / 8 + HALF)),
        Work(
            "PanelProduct",
            dense * HALF + TOKENS * COLS * HALF + results,
            tensor=2 * TOKENS * dense,
        ),
        Work(
            "InverseSpectrumKernel",
            results + TOKENS * ROWS * HALF,
            single=TOKENS * transform(ROWS) / 2,
        ),
    ]


WORKS: dict[str, list[Work]] = {
    "compression, ring 4": compression(4),
    "compression, trellis 4: its codes": search(),
    "compression, rank 64: its factors": low_rank(),
    "compression, error feedback": feedback(),
    "compression, rank 64 and feedback": weighting(),
    "dense weight, trellis 4": decoding(4),
    "1 token, ring 4": one_token(4),
    "1 token, trellis 4": one_token(4),
    "1 token, rank 64: its factors": low_rank_product(),
    "2048 tokens, ring 4": many_tokens(4),
    "2048 tokens, trellis 4": many_tokens(4),
}


def bounds(rates: Rates, measured: Mapping[tuple[str, str], float] | None = None) -> list[Any]:
    """Return a row per work and kernel; ``measured`` are seconds by work and kernel."""
    rows = []
    for name, works in WORKS.items():
        for work in works:
            bound, limit = work.bound(rates)
            row = {"work": name, "kernel": work.kernel, "bound us": 1e6 * bound, "limit": limit}
            if measured is not None:
                seconds = measured[name, work.kernel]
                row |= {"us": 1e6 * seconds, "of the bound": bound / seconds}
            rows.append(row)
    return rows


def works() -> dict[str, Callable[[], object]]:
    """Return what launches the kernels of each work, on a GPU."""
    from bench.gpu_compression import second_moment
    from bench.gpu_speed import packed_layer
    from llava_fa import compress_matrix
    from llava_fa.nn import FourierLinear

    weight = torch.randn(ROWS, COLS, device="cuda").bfloat16()
    moment = second_moment(COLS)
    ring = packed_layer((ROWS, COLS), "ring", 4.0)
    trellis = packed_layer((ROWS, COLS), "trellis", 4.0)
    x = torch.randn(TOKENS, COLS, device="cuda", dtype=torch.bfloat16)
    config = CompressionConfig(bits=4)
    with_rank = config.replace(rank=RANK, max_alternations=1)
    ranked = FourierLinear.from_matrix(compress_matrix(weight, with_rank)).to("cuda")
    calls: list[Callable[[], object]] = [
        partial(compress_matrix, weight, config.replace(odc="none")),
        partial(compress_matrix, weight, config.replace(codec="trellis")),
        partial(compress_matrix, weight, with_rank),
        partial(compress_matrix, weight, config, input_second_moment=moment),
        partial(compress_matrix, weight, with_rank, input_second_moment=moment),
        trellis.dense,
        partial(ring, x[:1]),
        partial(trellis, x[:1]),
        partial(ranked, x[:1]),
        partial(ring, x),
        partial(trellis, x),
    ]
    return dict(zip(WORKS, calls, strict=True))


def kernel_seconds(call: Callable[[], object]) -> dict[str, float]:
    """Return what the launches of each kernel take together, by the kernel's name."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return seconds_by_kernel((event.key, event.device_time_total) for event in found.key_averages())


def device_rates() -> Rates:
    """Rates of this GPU: measured of copies and of matrix products, others by its clock."""
    from bench.gpu_compression import LANES
    from bench.gpu_speed import copy_bandwidth, seconds_per_call

    device: Any = torch.cuda.get_device_properties(0)
    single = device.multi_processor_count * LANES * 1e3 * device.clock_rate
    double = single / (2 if (device.major, device.minor) in ((8, 0), (9, 0), (10, 0)) else 64)
    factor = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    tensor = 2 * 8192**3 / seconds_per_call([lambda: factor @ factor])
    return Rates(copy_bandwidth(), single, double, tensor, device.multi_processor_count)


def seconds_by_kernel(events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Add up microseconds of launches whose names are C++ names of our kernels."""
    seconds: dict[str, float] = {}
    for name, microseconds in events:
        if found := re.search(r"cuda::run<(?:\w+::)*(\w+)", name):
            seconds[found[1]] = seconds.get(found[1], 0.0) + microseconds / 1e6
    return seconds


def main() -> None:
    """Measure and publish."""
    arguments = support.parser(__doc__, "gpu_kernels").parse_args()
    torch.manual_seed(0)
    rates = device_rates()
    measured = {
        (name, kernel): seconds
        for name, call in works().items()
        for kernel, seconds in kernel_seconds(call).items()
    }
    figures = {"device": torch.cuda.get_device_properties(0).name, "rates": asdict(rates)}
    support.publish("gpu_kernels", arguments.json, {"Kernels": bounds(rates, measured)}, figures)


if __name__ == "__main__":
    main()

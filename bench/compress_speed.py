"""How long does compression take, against plain torch and against what the machine can do?

1. One 4096 x 4096 float32 matrix at rank 64, 3 bits, 5 alternations, and at rank 0: the library
   and ``plain_torch`` take turns in the same run.
2. Every distinct shape of LLaVA-1.5-7B, data-free, rank 0, 4 bits: seconds times counts project
   the whole model.
3. The physical limit: floating-point operations and memory traffic of the steps against the peak
   single-precision product rate and the copy bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import plain_torch, support
from llava_fa import CompressionConfig, compress_matrix

PROBLEMS = Path(__file__).with_name("problems.json")
TARGET_SPEEDUP = 4.0
TARGET_MINUTES = 3.0
Shape = tuple[int, int]


def best_seconds(task: Callable[[], object], repeats: int) -> float:
    """Return the shortest of some runs: what the machine can do when nobody disturbs it."""
    return min(support.interleaved_seconds({"task": task}, repeats)["task"])


def machine_limits(size: int) -> dict[str, float]:
    """Measure the peak product rate (GFLOP/s) and copy bandwidth (GB/s) that torch reaches."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    product = best_seconds(lambda: a @ b, 5)
    source = torch.randn(16 * size * size)
    target = torch.empty_like(source)
    copy = best_seconds(lambda: target.copy_(source), 5)
    return {
        "sgemm_gflops": 2 * size**3 / product / 1e9,
        "copy_gbytes_per_second": 2 * source.numel() * 4 / copy / 1e9,
    }


def work(shape: Shape, rank: int, alternations: int, passes: int = 2) -> dict[str, float]:
    """Count the arithmetic (GFLOP) and least memory traffic (GB) of compressing one matrix.

    - Transform: 5 N log2 N for a complex transform of length N, half for real input; the inverse
      is not part of compressing.
    - Product of complex matrices: 8 operations per multiplication of two entries. One subspace
      pass multiplies by the matrix and by its adjoint; the alternation starts with ``passes``
      power iterations and needs one pass from the warm start; every alternation then subtracts
      the product of the factors. Orthonormalization: 8 h k^2 per factor, twice.
    - Code: about 30 operations per complex entry (scale, magnitude, ring, phase, packing, refit).
    - Traffic: the weight is read, the spectrum written and read once for each pass over it.
    """
    rows, columns = shape
    half = rows // 2 + 1
    entries = half * columns
    transform = 2.5 * columns * rows * math.log2(max(rows, 2))
    transform += 5 * entries * math.log2(max(columns, 2))
    coding_rounds = alternations if rank else 1
    flops = transform + 30 * entries * coding_rounds
    traffic = 4 * rows * columns + 2 * 8 * entries
    if rank:
        block = rank + 8
        products = 2 * (1 + passes) + 2 * (alternations - 1)
        flops += 8 * entries * (block * products + rank * alternations)
        flops += 16 * (half + columns) * block**2 * (alternations + passes)
        # Per alternation: two products read A - Q, subtraction reads A and writes the residual,
        # the code reads it and writes Q.
        traffic += 8 * entries * (products + 4 * alternations)
    else:
        traffic += 8 * entries
    return {"gflop": flops / 1e9, "gbytes": traffic / 1e9}


def limit_seconds(amount: dict[str, float], machine: dict[str, float]) -> float:
    """Return the time no implementation beats: products at peak rate or traffic, the longer."""
    return max(
        amount["gflop"] / machine["sgemm_gflops"],
        amount["gbytes"] / machine["copy_gbytes_per_second"],
    )


def side_by_side(
    shape: Shape, rank: int, bits: float, alternations: int, repeats: int
) -> dict[str, Any]:
    """Time library and plain torch on one matrix in turns; errors of both beside."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 0.02
    config = CompressionConfig(bits=bits, rank=rank, max_alternations=alternations)
    plain = plain_torch.PlainConfig(bits=bits, rank=rank, max_alternations=alternations)
    errors: dict[str, float] = {}

    def library() -> None:
        errors["library"] = compress_matrix(weight, config).relative_error(weight)

    def torch_only() -> None:
        dense = plain_torch.compress(weight, plain).dense
        errors["plain torch"] = plain_torch.relative_error(weight, dense)

    library()  # designs the constellations, plans the transforms
    torch_only()
    tasks = {
        "library": lambda: compress_matrix(weight, config),
        "plain torch": lambda: plain_torch.compress(weight, plain),
    }
    seconds = support.interleaved_seconds(tasks, repeats)
    ratios = [p / q for p, q in zip(seconds["plain torch"], seconds["library"], strict=True)]
    return {
        "matrix": f"{shape[0]} x {shape[1]}",
        "rank": rank,
        "bits": bits,
        "alternations": alternations if rank else 1,
        "library s": statistics.median(seconds["library"]),
        "plain torch s": statistics.median(seconds["plain torch"]),
        "speedup": statistics.median(ratios),
        "speedup range": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "library error": errors["library"],
        "plain torch error": errors["plain torch"],
    }


def project(
    matrices: list[dict[str, Any]], shrink: int, repeats: int, machine: dict[str, float]
) -> list[dict[str, Any]]:
    """Time each distinct shape data-free at rank 0, 4 bits, and multiply by the counts."""
    config = CompressionConfig(bits=4.0, rank=0, odc="none")
    seconds: dict[Shape, float] = {}
    rows = []
    for entry in matrices:
        shape = (max(8, entry["shape"][0] // shrink), max(8, entry["shape"][1] // shrink))
        if shape not in seconds:
            weight = torch.randn(*shape) * 0.02
            task = partial(compress_matrix, weight, config)
            times = support.interleaved_seconds({"library": task}, repeats + 1)["library"]
            seconds[shape] = statistics.median(times[1:])
            del weight, task
            gc.collect()
        limit = limit_seconds(work(shape, 0, 1), machine)
        rows.append(
            {
                "part": entry["part"],
                "role": entry["role"],
                "matrix": f"{shape[0]} x {shape[1]}",
                "count": entry["count"],
                "s each": seconds[shape],
                "s all": seconds[shape] * entry["count"],
                "limit s each": limit,
                "fraction of limit": limit / seconds[shape],
                "million weights/s": shape[0] * shape[1] / seconds[shape] / 1e6,
            }
        )
    return rows


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "compress_speed")
    parser.add_argument("--size", type=int, default=4096, help="side of the square matrix")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each measurement")
    parser.add_argument("--threads", type=int, help="threads of both sides (default: as they are)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.rank, arguments.repeats = 256, 16, 1
    if arguments.threads:
        _set_threads(arguments)
    begin = time.perf_counter()
    machine = machine_limits(256 if arguments.quick else 2048)
    side = (arguments.size, arguments.size)
    compared = [
        side_by_side(side, arguments.rank, 3.0, 5, arguments.repeats),
        side_by_side(side, 0, 4.0, 1, arguments.repeats),
    ]
    for row in compared:
        amount = work(side, row["rank"], row["alternations"])
        row["GFLOP"], row["GB"] = amount["gflop"], amount["gbytes"]
        row["limit s"] = limit_seconds(amount, machine)
        row["fraction of limit"] = row["limit s"] / row["library s"]
    problems = json.loads(PROBLEMS.read_text())
    shrink = 16 if arguments.quick else 1
    model = project(problems["llava-1.5-7b"]["matrices"], shrink, arguments.repeats, machine)
    odd = project(problems["odd"]["matrices"], shrink, arguments.repeats, machine)
    minutes = sum(row["s all"] for row in model) / 60
    weights = sum(math.prod(m["shape"]) * m["count"] for m in problems["llava-1.5-7b"]["matrices"])
    verdicts = [
        support.target("speedup over plain torch", compared[0]["speedup"], TARGET_SPEEDUP, True),
        support.target("minutes for LLaVA-1.5-7B, rank 0", minutes, TARGET_MINUTES, False),
    ]
    if arguments.quick:
        for row in verdicts:
            row["met"] = None  # a smoke run's shapes are not the target's
    support.publish(
        "compress_speed",
        arguments.json,
        {
            "Side by side": compared,
            "Every matrix of LLaVA-1.5-7B, 4 bits, data-free": model,
            "Hard sizes": odd,
            "Targets": verdicts,
            "Machine": [{**machine, "torch threads": torch.get_num_threads()}],
        },
        {
            "limits": machine,
            "projected_minutes": minutes,
            "weights": weights,
            "speedup": compared[0]["speedup"],
            "seconds_taken": time.perf_counter() - begin,
        },
    )


def _set_threads(arguments: argparse.Namespace) -> None:
    from llava_fa import _core

    torch.set_num_threads(arguments.threads)
    _core.set_num_threads(arguments.threads)


if __name__ == "__main__":
    main()

"""How long does a GPU take to compress every matrix of LLaVA-1.5-7B, data-free?

Every distinct shape once per code, weights and results where they would be: bfloat16 weights on the
GPU, compressed matrices on the CPU. Seconds times counts give the model's. The bound of codes
without memory is the time in which the weight is read and the codes are written; that of the
trellis, the time of its arithmetic: 5 operations for each of its states and entries, half as many
again around the seams of 256 rows.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from typing import Any

import torch

from bench import support
from bench.compress_speed import PROBLEMS, Shape
from bench.gpu_speed import copy_bandwidth
from llava_fa import CompressionConfig, compress_matrix

CODES = [("ring", 4.0), ("ring", 2.0), ("trellis", 4.0), ("trellis", 2.0)]
TARGET_SECONDS = 20.0
RUNS = 3
SEARCH_OPERATIONS = 5 * 1.5
LANES = 128  # float32 units of a multiprocessor


def peak_operations() -> float:
    """Multiplications or additions per second, one per instruction."""
    device = torch.cuda.get_device_properties(0)
    return device.multi_processor_count * LANES * 1e3 * device.clock_rate


def seconds(weight: torch.Tensor, config: CompressionConfig) -> float:
    """Median time of one compression; it waits for the GPU."""
    times = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        compress_matrix(weight, config)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bound(weight: torch.Tensor, config: CompressionConfig, bandwidth: float) -> float:
    """Seconds that the memory, or for the trellis the arithmetic, takes at least."""
    if config.codec != "trellis":
        return weight.numel() * (weight.element_size() + config.bits / 8) / bandwidth
    entries = weight.numel() / 2
    return entries * 2**config.state_bits * SEARCH_OPERATIONS / peak_operations()


def model_shapes() -> Counter[Shape]:
    """Distinct shapes of LLaVA-1.5-7B and how many matrices have them."""
    shapes: Counter[Shape] = Counter()
    for matrix in json.loads(PROBLEMS.read_text())["llava-1.5-7b"]["matrices"]:
        rows, cols = matrix["shape"]
        shapes[rows, cols] += matrix["count"]
    return shapes


def rows_of(shapes: Counter[Shape], bandwidth: float) -> list[dict[str, Any]]:
    """Time every shape in every code, after one matrix that loads the kernels."""
    rows = []
    for codec, bits in CODES:
        config = CompressionConfig(bits=bits, codec=codec).for_checkpoint()
        compress_matrix(torch.randn(512, 512, device="cuda"), config)
        for shape, count in shapes.items():
            weight = torch.randn(shape, device="cuda").bfloat16()
            found, least = seconds(weight, config), bound(weight, config, bandwidth)
            rows.append(
                {
                    "code": f"{codec} {bits:g}",
                    "layer": f"{shape[0]} x {shape[1]}",
                    "of them": count,
                    "ms": 1e3 * found,
                    "all of them, s": found * count,
                    "of the bound": least / found,
                }
            )
    return rows


def totals(rows: list[dict[str, Any]], *, judge: bool) -> list[dict[str, Any]]:
    """Judge the time of the whole model at 4 bits."""
    judged = []
    for codec, bits in CODES:
        code = f"{codec} {bits:g}"
        total = sum(row["all of them, s"] for row in rows if row["code"] == code)
        target = support.target(f"seconds for the model, {code}", total, TARGET_SECONDS, False)
        if not judge or bits != 4.0:  # a smoke run's shapes are not the target's
            target["met"] = None
        judged.append(target)
    return judged


def main() -> None:
    """Measure and publish."""
    arguments = support.parser(__doc__, "gpu_compression").parse_args()
    torch.manual_seed(0)
    shapes = Counter({(1024, 1024): 1}) if arguments.quick else model_shapes()
    rows = rows_of(shapes, copy_bandwidth())
    tables = {"Matrices": rows, "Targets": totals(rows, judge=not arguments.quick)}
    figures = {"device": torch.cuda.get_device_properties(0).name}
    support.publish("gpu_compression", arguments.json, tables, figures)


if __name__ == "__main__":
    main()

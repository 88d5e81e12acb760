"""How long does a GPU take to compress every matrix of LLaVA-1.5-7B?

Every distinct shape in every setting, weights and results where they would be: bfloat16 weights on
the GPU, second moments and compressed matrices on the CPU. Alone, and as many at a time as
``compress_checkpoint`` has in flight; seconds per matrix of these, times counts, give the model's.
The bound is the longer one of two times: that in which the weight is read and the codes are
written, and that of the GPU's arithmetic in float32. The trellis takes 5 operations for each of its
states and entries, half as many again around the seams of 256 rows; a low rank, products with
rank + 10 columns; feedback, the triangular filter's factorization and two products with it.

Calibration runs torch's own kernels: of it the second moments are timed, in float32 without TF32,
for which a row takes (n + 1024) n / 2 multiply-adds (panels of 1024 columns, upper triangle).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench import support
from bench.compress_speed import PROBLEMS, Shape
from bench.gpu_speed import copy_bandwidth
from llava_fa import CompressionConfig, compress_matrix
from llava_fa.in_flight import IN_FLIGHT, own_streams
from llava_fa.moments import SecondMoment

DEVICE = torch.device("cuda", 0)
SEARCH_OPERATIONS = 5 * 1.5
OVERSAMPLING = 10  # columns beside the rank, of the block that finds a low rank
COMPLEX_PRODUCT = 4  # multiply-adds
LANES = 128  # float32 units of a multiprocessor


@dataclass(frozen=True)
class Setting:
    """How every matrix is compressed, and how long the model may take."""

    name: str
    config: CompressionConfig
    target_seconds: float | None = None
    fed_back: bool = False


SETTINGS = [
    Setting("ring 4", CompressionConfig(bits=4), 20.0),
    Setting("ring 2", CompressionConfig(bits=2)),
    Setting("trellis 4", CompressionConfig(bits=4, codec="trellis"), 20.0),
    Setting("trellis 2", CompressionConfig(bits=2, codec="trellis")),
    Setting("ring 4, rank 64", CompressionConfig(bits=4, rank=64, max_alternations=5), 90.0),
    Setting("ring 4, fed back", CompressionConfig(bits=4), 300.0, fed_back=True),
    Setting(
        "trellis 4, fed back", CompressionConfig(bits=4, codec="trellis"), 300.0, fed_back=True
    ),
]


def peak_operations() -> float:
    """Multiplications or additions per second, one per instruction."""
    device = torch.cuda.get_device_properties(0)
    return device.multi_processor_count * LANES * 1e3 * device.clock_rate


def seconds(work: Callable[[], object]) -> float:
    """Time of work that waits for the GPU."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def all_at_a_time(compress: Callable[[], object]) -> None:
    """Compress as many as are in flight, each on a thread and a stream."""
    with ThreadPoolExecutor(IN_FLIGHT, initializer=own_streams(DEVICE, IN_FLIGHT)) as pool:
        for begun in [pool.submit(compress) for _ in range(IN_FLIGHT)]:
            begun.result()


def operations(shape: Shape, setting: Setting) -> float:
    """Arithmetic that a matrix takes on the GPU, in instructions."""
    config = setting.config
    entries, inputs = (shape[0] // 2 + 1) * shape[1], shape[1]
    total = 0.0
    if config.codec == "trellis":
        passes = config.max_alternations if config.rank else 1
        total += passes * entries * 2**config.state_bits * SEARCH_OPERATIONS
    if config.rank:
        bases = 6 + 2 * config.max_alternations  # the first iterates, the last refits
        columns = bases * (config.rank + OVERSAMPLING) + (config.max_alternations + 1) * config.rank
        total += COMPLEX_PRODUCT * entries * columns
    if setting.fed_back:
        total += COMPLEX_PRODUCT * (entries * inputs + inputs**3 / 6)
    return total


def bound(shape: Shape, setting: Setting, bandwidth: float) -> float:
    """Seconds that the memory or the arithmetic takes at least."""
    memory = shape[0] * shape[1] * (2 + setting.config.bits / 8) / bandwidth
    return max(memory, operations(shape, setting) / peak_operations())


def moments(channels: set[int], count: int) -> list[dict[str, Any]]:
    """Time adding ``count`` inputs to a second moment."""
    rows = []
    for size in sorted(channels):
        inputs = torch.randn(count, size, device=DEVICE).bfloat16()
        moment = SecondMoment(size, DEVICE)
        moment.add(inputs)  # loads the kernels
        found = seconds(lambda add=moment.add, inputs=inputs: _finished(add, inputs))
        least = count * size * (size + min(size, 1024)) / 2 / peak_operations()
        rows.append(
            {
                "channels": size,
                "inputs": count,
                "ms": 1e3 * found,
                "of the bound": least / found,
            }
        )
    return rows


def _finished(add: Callable[[torch.Tensor], None], inputs: torch.Tensor) -> None:
    add(inputs)
    torch.cuda.synchronize()


def second_moment(channels: int) -> torch.Tensor:
    """Return E[x xᵀ] of inputs whose neighbouring channels go together, on the CPU."""
    inputs = torch.randn(2 * channels, channels, device=DEVICE)
    inputs[:, 1:] += 0.8 * inputs[:, :-1]
    return (inputs.T @ inputs / len(inputs)).cpu()


def model_shapes() -> Counter[Shape]:
    """Distinct shapes of LLaVA-1.5-7B and how many matrices have them."""
    shapes: Counter[Shape] = Counter()
    for matrix in json.loads(PROBLEMS.read_text())["llava-1.5-7b"]["matrices"]:
        rows, cols = matrix["shape"]
        shapes[rows, cols] += matrix["count"]
    return shapes


def rows_of(
    shapes: Counter[Shape], settings: list[Setting], bandwidth: float
) -> list[dict[str, Any]]:
    """Time every shape in every setting, after one matrix that loads the kernels."""
    rows = []
    moments = {channels: second_moment(channels) for channels in {512, *(n for _, n in shapes)}}
    for setting in settings:
        config = setting.config.for_checkpoint()
        given = moments if setting.fed_back else {}
        compress_matrix(
            torch.randn(512, 512, device=DEVICE), config, input_second_moment=given.get(512)
        )
        for shape, count in shapes.items():
            compress = partial(
                compress_matrix,
                torch.randn(shape, device=DEVICE).bfloat16(),
                config,
                input_second_moment=given.get(shape[1]),
            )
            alone = seconds(compress)
            found = seconds(lambda work=compress: all_at_a_time(work)) / IN_FLIGHT
            rows.append(
                {
                    "setting": setting.name,
                    "layer": f"{shape[0]} x {shape[1]}",
                    "of them": count,
                    "alone, ms": 1e3 * alone,
                    "in flight, ms each": 1e3 * found,
                    "all of them, s": found * count,
                    "of the bound": bound(shape, setting, bandwidth) / found,
                }
            )
    return rows


def totals(
    rows: list[dict[str, Any]], settings: list[Setting], *, judge: bool
) -> list[dict[str, Any]]:
    """Judge the time of the whole model where there is a target."""
    judged = []
    for setting in settings:
        if setting.target_seconds is None:
            continue
        total = sum(row["all of them, s"] for row in rows if row["setting"] == setting.name)
        name = f"seconds for the model, {setting.name}"
        target = support.target(name, total, setting.target_seconds, False)
        if not judge:  # a smoke run's shapes are not the target's
            target["met"] = None
        judged.append(target)
    return judged


def main() -> None:
    """Measure and publish."""
    arguments = support.parser(__doc__, "gpu_compression").parse_args()
    torch.manual_seed(0)
    shapes = Counter({(1024, 1024): 1}) if arguments.quick else model_shapes()
    rows = rows_of(shapes, SETTINGS, copy_bandwidth())
    tables = {
        "Matrices": rows,
        "Second moments": moments({cols for _, cols in shapes}, 1024 if arguments.quick else 8192),
        "Targets": totals(rows, SETTINGS, judge=not arguments.quick),
    }
    figures = {"device": torch.cuda.get_device_properties(0).name}
    support.publish("gpu_compression", arguments.json, tables, figures)


if __name__ == "__main__":
    main()

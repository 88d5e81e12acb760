"""How long do error feedback and the trellis take, against the machine's matrix-product peak?

1. Compressing one matrix at 2 bits: `ring` and `trellis`, without data and with a full second
   moment (its factorization included). The arithmetic of the feedback stands beside the peak of
   matrix products measured in the same run.
2. Decoding the codes of the same matrices, against copying as many floats into new memory.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from bench import support
from bench.compress_speed import best_seconds, machine_limits
from llava_fa import CompressionConfig, compress_matrix

FEEDBACK_SECONDS = 25.0
TRELLIS_SECONDS = 20.0
LEAST_FRACTION = 0.5
DECODE_FACTOR = 3.0


def second_moment(size: int) -> torch.Tensor:
    """E[x xᵀ] of correlated inputs with falling power."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(size + 256, size, generator=generator)
    x = (x + 0.3) * torch.arange(1, size + 1) ** -0.3
    return x.T @ x / len(x)


def feedback_gflop(rows: int, columns: int) -> float:
    """Arithmetic of the feedback, in GFLOP.

    A complex Cholesky factorization of n columns takes 4/3 n³ real operations. The products that
    carry errors and references to later columns have n²/2 complex multiplications per kept row
    each, of 8 operations.
    """
    half = rows // 2 + 1
    return (4 / 3 * columns**3 + 2 * half * columns**2 / 2 * 8) / 1e9


def encoding(size: int, repeats: int, peak: float) -> list[dict[str, Any]]:
    """Time the four ways of coding one square matrix."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(1))
    moment = second_moment(size)
    rows = []
    for codec in ("ring", "trellis"):
        config = CompressionConfig(bits=2, codec=codec)
        for name, data in (("none", None), ("full second moment", moment)):

            def task(config: CompressionConfig = config, data: Any = data) -> object:
                return compress_matrix(weight, config, input_second_moment=data)

            seconds = best_seconds(task, repeats)
            rows.append({"codec": codec, "data": name, "s": seconds})
        added = rows[-1]["s"] - rows[-2]["s"]
        rate = feedback_gflop(size, size) / added
        rows[-1] |= {"s added": added, "GFLOP/s added": rate, "fraction of peak": rate / peak}
    return rows


def decoding(size: int, repeats: int) -> list[dict[str, Any]]:
    """Time decoding into new memory against copying as many floats into new memory."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(1))
    copy = best_seconds(weight.clone, max(repeats, 3))
    rows: list[dict[str, Any]] = [{"task": "copy of the dense weight into new memory", "s": copy}]
    for codec in ("ring", "trellis"):
        matrix = compress_matrix(weight, CompressionConfig(bits=2, codec=codec, state_bits=12))
        entries = best_seconds(matrix.code_planes, repeats)
        rows.append(
            {
                "task": f"{codec}: codes to entries of the spectrum",
                "s": entries,
                "copies": entries / copy,
            }
        )
        dense = best_seconds(matrix.dense, repeats)
        rows.append({"task": f"{codec}: dense weight", "s": dense, "copies": dense / copy})
    return rows


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "feedback_speed")
    parser.add_argument("--size", type=int, default=4096, help="side of the square matrix")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.repeats = 256, 1
    begin = time.perf_counter()
    machine = machine_limits(256 if arguments.quick else 2048)
    coded = encoding(arguments.size, arguments.repeats, machine["sgemm_gflops"])
    decoded = decoding(arguments.size, arguments.repeats)
    ring, trellis = coded[1], coded[2]
    codes = next(row for row in decoded if row["task"].startswith("trellis: codes"))
    targets = [
        support.target("ring with feedback, s", ring["s"], FEEDBACK_SECONDS, False),
        support.target(
            "feedback, fraction of peak", ring["fraction of peak"], LEAST_FRACTION, True
        ),
        support.target("trellis without data, s", trellis["s"], TRELLIS_SECONDS, False),
        support.target(
            "trellis decoding, passes over memory", codes["copies"], DECODE_FACTOR, False
        ),
    ]
    if arguments.quick:
        for row in targets:
            row["met"] = None  # a smoke run's size is not the target's
    tables = {
        f"Encoding {arguments.size} x {arguments.size}, 2 bits": coded,
        "Decoding": decoded,
        "Targets": targets,
        "Machine": [{**machine, "torch threads": torch.get_num_threads()}],
    }
    figures = {"limits": machine, "seconds_taken": time.perf_counter() - begin}
    support.publish("feedback_speed", arguments.json, tables, figures)


if __name__ == "__main__":
    main()

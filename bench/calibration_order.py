"""Does calibrating layer after layer beat calibrating on the dense model's inputs?

In one pass every layer's second moment is that of the dense model; in sequence it is that of the
layers compressed before it (``calibration_order`` of ``compress_checkpoint``). The tiny model is
compressed both ways under several seeds and asked questions that neither has seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import support, tiny_model
from bench.allocation_trial import examples
from bench.tiny_model import Judge, Score
from llava_fa import CompressionConfig, compress_checkpoint
from llava_fa.calibrate import ORDERS
from llava_fa.packed_checkpoint import PackedCheckpoint

CASES = (("ring", 1.0), ("ring", 2.0), ("ring", 3.0), ("trellis", 2.0))
QUICK_CASES = (("ring", 2.0),)


def compressed_score(judge: Judge, arguments: Any, config: CompressionConfig, order: str) -> Score:
    """Compress the model in one order and ask the benchmark of the result."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "packed"
        compress_checkpoint(
            arguments.model,
            output,
            config,
            calibration_data=examples(judge, arguments.calibration),
            calibration_order=order,
            progress=False,
        )
        packed = PackedCheckpoint.open(output)
        return judge.score({name: packed.read_matrix(name).dense() for name in packed.specs})


def measure(judge: Judge, arguments: Any, codec: str, bits: float, seeds: int) -> dict[str, Any]:
    """Return a row: both orders, and the logarithm of the ratio with its standard error."""
    row: dict[str, Any] = {"codec": codec, "bits": bits, "seeds": seeds}
    divergences = {}
    for order in ORDERS:
        scores = [
            compressed_score(
                judge, arguments, CompressionConfig(bits=bits, codec=codec, seed=seed), order
            )
            for seed in range(seeds)
        ]
        divergences[order] = np.stack([score.divergences for score in scores])
        row[f"{order} KL"] = float(divergences[order].mean())
        row[f"{order} by seed"] = ", ".join(f"{score.kl:.4g}" for score in scores)
    one_pass, sequential = (divergences[order] for order in ORDERS)
    row["log ratio"] = float(np.log(sequential.mean() / one_pass.mean()))
    row["its standard error"] = judge.log_ratio_error(sequential, one_pass)
    return row


def cases(quick: bool) -> Sequence[tuple[str, float]]:
    """Return (codec, bits)."""
    return QUICK_CASES if quick else CASES


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "calibration_order")
    tiny_model.add_options(parser, questions=500)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the random signs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.questions, arguments.calibration, arguments.seeds = 20, 8, 1
    judge = Judge(arguments.model, arguments.questions)
    rows = [
        measure(judge, arguments, codec, bits, arguments.seeds)
        for codec, bits in cases(arguments.quick)
    ]
    support.publish(
        "calibration_order",
        arguments.json,
        {"KL of both orders": rows},
        {"questions": arguments.questions, "calibration questions": arguments.calibration},
    )


if __name__ == "__main__":
    main()

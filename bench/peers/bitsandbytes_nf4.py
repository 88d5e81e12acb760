"""bitsandbytes: NF4 in blocks of 64 along the rows, with and without double quantization.

Counted: packed codes, absolute maxima (float32, or 8-bit codes with a float32 per 256 of them and
the offset). The two tables of levels, constants that its checkpoints repeat per layer, are not.
"""

from __future__ import annotations

from typing import Any

from bench.baselines import Baseline
from bench.peers.task import Setting, Task, bits_of

PACKAGE = "bitsandbytes"
SETTINGS = (
    Setting("bitsandbytes NF4", 4, {"double": False}),
    Setting("bitsandbytes NF4, double quantization", 4, {"double": True}),
)


def quantize(task: Task, options: dict[str, Any], _seed: int) -> dict[str, Baseline]:
    """Quantize and dequantize with the library's CPU functions."""
    from bitsandbytes import functional

    results = {}
    for name, weight in task.weights.items():
        packed, state = functional.quantize_4bit(
            weight.contiguous(),
            blocksize=64,
            compress_statistics=options["double"],
            quant_type="nf4",
        )
        bits = bits_of(packed, state.absmax)
        if state.nested:
            bits += bits_of(state.state2.absmax, state.offset)
        dense = functional.dequantize_4bit(packed, state)
        results[name] = Baseline(dense.reshape(weight.shape).float(), bits)
    return results

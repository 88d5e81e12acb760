"""Times bitsandbytes' NF4 layer on the CPU: ``python -m bench.peers.decode JSON``.

Runs in the peers' environment, which has no llava_fa; prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from bitsandbytes.nn import Linear4bit


def milliseconds(rows: int, columns: int, repeats: int) -> float:
    """Median time of one bfloat16 token, layers taking turns."""
    layers = []
    for _ in range(4):
        dense = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
        layer = Linear4bit(columns, rows, bias=False, quant_type="nf4")
        layer.load_state_dict(dense.state_dict())
        layers.append(layer.to("cpu"))
    x = torch.randn(1, columns, dtype=torch.bfloat16)
    times = []
    with torch.inference_mode():
        for layer in layers:
            layer(x)
        for repeat in range(repeats):
            start = time.perf_counter()
            layers[repeat % len(layers)](x)
            times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[len(times) // 2]


def main() -> None:
    """Measure the shapes of the argument."""
    options = json.loads(sys.argv[1])
    rows = [
        {
            "peer": "bitsandbytes NF4",
            "layer": f"{shape[0]} x {shape[1]}",
            "bfloat16 ms": milliseconds(*shape, options["repeats"]),
        }
        for shape in options["shapes"]
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

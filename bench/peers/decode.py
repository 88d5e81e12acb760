"""Times another quantizer's 4-bit layer on the CPU: ``python -m bench.peers.decode PEER JSON``.

Runs in the peers' environment, which has no llava_fa; prints one line of JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable

import torch

# More than any processor's cache, in bytes of layers that take turns.
SPREAD_BYTES = 1.5e8
NF4 = "bitsandbytes NF4"
INT4 = "torchao int4"


def bitsandbytes_nf4(dense: torch.nn.Linear) -> torch.nn.Module:
    """NF4 in blocks of 64, as bitsandbytes stores it by default."""
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(dense.in_features, dense.out_features, bias=False, quant_type="nf4")
    layer.load_state_dict(dense.state_dict())
    return layer.to("cpu")


def torchao_int4(dense: torch.nn.Linear) -> torch.nn.Module:
    """Integers in groups of 128, by the configuration of torchao that runs on CPUs."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    layer = torch.nn.Sequential(dense)
    quantize_(layer, PrototypeInt4WeightOnlyConfig(group_size=128))
    return layer


PEERS: dict[str, Callable[[torch.nn.Linear], torch.nn.Module]] = {
    NF4: bitsandbytes_nf4,
    INT4: torchao_int4,
}


def milliseconds(peer: str, rows: int, columns: int, repeats: int) -> float:
    """Median time of one bfloat16 token, layers taking turns."""
    count = math.ceil(SPREAD_BYTES / (rows * columns / 2))
    layers = [
        PEERS[peer](torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16))
        for _ in range(count)
    ]
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
    peer, options = sys.argv[1], json.loads(sys.argv[2])
    rows = [
        {
            "peer": peer,
            "layer": f"{shape[0]} x {shape[1]}",
            "bfloat16 ms": milliseconds(peer, *shape, options["repeats"]),
        }
        for shape in options["shapes"]
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

"""How fast are products with packed matrices on a GPU, against dense bfloat16 and its memory?

Each time is the median over replays of a CUDA graph that multiplies with several copies of a layer
in turn, more than the GPU's cache holds. The bound of one token is the time in which the stored
bytes are read at the speed of a copy, that of many tokens the time of the dense product.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from bench import support
from llava_fa import CompressedMatrix, CompressionConfig, MatrixSpec, compress_matrix
from llava_fa.nn import FourierLinear

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008), (1024, 1024), (4304, 1152)]
CODES = [("ring", 4.0), ("ring", 2.0), ("trellis", 4.0), ("trellis", 2.0)]
TOKENS = [1, 4, 16, 512, 2048]
COPIES_BYTES = 256 << 20  # of all copies together: several times the largest cache
MOST_COPIES = 64  # which small layers reach first, and may stay in the cache
REPLAYS = 15


def dense_layer(shape: tuple[int, int]) -> torch.nn.Linear:
    linear = torch.nn.Linear(shape[1], shape[0], bias=False, device="cuda", dtype=torch.bfloat16)
    return linear.requires_grad_(False)


def packed_layer(shape: tuple[int, int], codec: str, bits: float) -> FourierLinear:
    """A layer of random codes: their values do not matter to the time."""
    small = compress_matrix(torch.randn(256, 256), CompressionConfig(bits=bits, codec=codec))
    fields = small.spec.to_dict() | {"shape": list(shape)}
    state = random_state(MatrixSpec.from_dict(fields), small)
    return FourierLinear.from_matrix(CompressedMatrix.from_state_dict(state)).to("cuda")


def random_state(spec: MatrixSpec, small: CompressedMatrix) -> dict[str, torch.Tensor]:
    """Stored tensors of a matrix of any shape; widths fill bytes, so no padding bit is set."""
    stored = small.state_dict()
    state = {}
    for name, (dtype, shape) in spec.tensors().items():
        if name == "codes":
            state[name] = torch.randint(0, 256, shape, dtype=dtype)
        elif name in ("header", "matrix_scale"):
            state[name] = stored[name].clone()
        else:
            state[name] = torch.ones(shape, dtype=dtype)
    state["header"][1:3] = torch.tensor(spec.shape)
    return state


def seconds_per_call(calls: Sequence[Callable[[], Any]]) -> float:
    """Median over replays of a graph of all calls, divided by how many they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which still copies the layers
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times) / len(calls)


def copy_bandwidth() -> float:
    """Bytes per second read and written by a copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_per_call([lambda: target.copy_(source)])


def stored_bytes(module: torch.nn.Module) -> int:
    tensors = [*module.buffers(), *module.parameters()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def copies(layer: torch.nn.Module) -> list[torch.nn.Module]:
    """The layer and copies of it, as many as do not fit the cache together if they are large."""
    count = min(MOST_COPIES, COPIES_BYTES // stored_bytes(layer))
    return [layer, *(copy.deepcopy(layer) for _ in range(count))]


def times_of(layers: Sequence[torch.nn.Module], width: int, tokens: Sequence[int]) -> list[float]:
    found = []
    for count in tokens:
        x = torch.randn(count, width, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            found.append(seconds_per_call([partial(layer, x) for layer in layers]))
    return found


def rows_of(
    shape: tuple[int, int], tokens: Sequence[int], bandwidth: float
) -> list[dict[str, Any]]:
    """Time one shape in every code."""
    dense = times_of(copies(dense_layer(shape)), shape[1], tokens)
    rows = []
    for codec, bits in CODES:
        layers = copies(packed_layer(shape, codec, bits))
        packed = times_of(layers, shape[1], tokens)
        bytes_read = stored_bytes(layers[0])
        for count, dense_time, packed_time in zip(tokens, dense, packed, strict=True):
            bound = bytes_read / bandwidth if count == 1 else dense_time
            rows.append(
                {
                    "layer": f"{shape[0]} x {shape[1]}",
                    "code": f"{codec} {bits:g}",
                    "tokens": count,
                    "dense us": 1e6 * dense_time,
                    "packed us": 1e6 * packed_time,
                    "times dense": dense_time / packed_time,
                    "of the bound": bound / packed_time,
                }
            )
        del layers
    return rows


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the layers of LLaVA-1.5-7B."""
    judged = []
    for row in rows:
        what = f"{row['tokens']} tokens, {row['layer']}, {row['code']}"
        if row["layer"] not in {f"{m} x {n}" for m, n in SHAPES[:3]}:
            continue
        if row["tokens"] == 1:
            least = 3.0 if row["code"].endswith(" 4") else 4.5
            judged.append(support.target(f"{what}: times dense", row["times dense"], least, True))
            if row["code"].endswith(" 4"):
                judged.append(
                    support.target(f"{what}: of the bound", row["of the bound"], 0.6, True)
                )
        if row["tokens"] == 2048:
            slower = 1 / row["times dense"]
            judged.append(support.target(f"{what}: as long as dense", slower, 1.25, False))
    return judged


def main() -> None:
    """Measure and publish."""
    arguments = support.parser(__doc__, "gpu_speed").parse_args()
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    shapes, tokens = (SHAPES[3:4], TOKENS[:3]) if arguments.quick else (SHAPES, TOKENS)
    rows = [row for shape in shapes for row in rows_of(shape, tokens, bandwidth)]
    device = torch.cuda.get_device_properties(0)
    figures = {
        "device": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "copy_gbytes_per_second": bandwidth / 1e9,
    }
    support.publish(
        "gpu_speed", arguments.json, {"Layers": rows, "Targets": targets(rows)}, figures
    )


if __name__ == "__main__":
    main()

"""How fast are products with packed matrices, against dense ones and against the memory's speed?

1. One token: layers of LLaVA-1.5-7B and Qwen2.5-VL-3B, `FourierLinear` against torch's dense layer
   in float32 and bfloat16, and, with ``--peers-python``, NF4 of bitsandbytes and int4 of torchao.
   Codes are random: speed does not depend on them. Layers change from call to call, so that none
   stays in a cache, and all of one shape are measured in turn.
2. 36 and 512 tokens of the same: a prompt with a restored image, and one with a whole image.
3. A text model with random weights, dense, packed and with the others' layers: tokens per second,
   time to the first token, bytes of the weights.
4. The trained tiny model: whether the packed run time answers as the dense one.

Ratios are medians over rounds of the ratio within a round. The limit of one token is the time to
read the layer's stored bytes at the speed of reading memory, measured in the same run. The share of
the transforms is that of transforming one vector there and one back by two calls from Python, less
what these calls take for single numbers.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import support
from bench.agreement import agreement_rows
from bench.generation import generation, replace_linear
from bench.peers.decode import INT4, NF4, SPREAD_BYTES
from bench.random_model import random_text_model
from llava_fa import CompressedMatrix, half_spectrum, inverse_half_spectrum
from llava_fa.matrix_spec import MatrixSpec
from llava_fa.nn import FourierLinear
from llava_fa.packed_checkpoint import FORMAT_VERSION

SHAPES = {
    "LLaVA-1.5-7B": ((4096, 4096), (11008, 4096), (4096, 11008)),
    "Qwen2.5-VL-3B": ((2048, 2048), (11008, 2048), (2048, 11008)),
}
CODES: tuple[tuple[str, float], ...] = (
    ("ring", 2),
    ("ring", 3),
    ("ring", 4),
    ("trellis", 2),
    ("trellis", 4),
)
PEER_CALLS = {NF4: 15, INT4: 61}
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
UNCOUNTED_SECONDS = 0.02
CALLS_PER_TURN = 10
ROUNDS, ROUNDS_OF_MANY = 40, 7
OVER_RING = "over ring"

Timer = Callable[[], float]
"""Does something once, and says how many seconds it took."""


def packed_layer(shape: tuple[int, int], codec: str, bits: float, seed: int = 0) -> FourierLinear:
    """Return a layer with random codes and row scales of one."""
    state_bits = (14 if bits == 4 else 12) if codec == "trellis" else 0
    spec = MatrixSpec(
        shape,
        codec,
        code_bits=int(2 * bits),
        rank=0,
        factor_bits=8,
        signs=True,
        seed=0,
        channel_scale_in=False,
        channel_scale_out=False,
        state_bits=state_bits,
    )
    sizes = {name: (dtype, size) for name, (dtype, size) in spec.tensors().items()}
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "header": torch.tensor(  # docs/format.md, "Header"
            [
                FORMAT_VERSION,
                *shape,
                spec.code_bits,
                {"ring": 2, "trellis": 3}[codec],
                0,
                8,
                1,
                0,
                state_bits,
            ]
        ),
        "matrix_scale": torch.tensor([shape[1] ** -0.5]),
        "codes": torch.randint(0, 256, sizes["codes"][1], dtype=torch.uint8, generator=generator),
        "row_scale": torch.ones(sizes["row_scale"][1], dtype=torch.float16),
    }
    return FourierLinear.from_matrix(CompressedMatrix.from_state_dict(tensors))


def stored_bytes(layer: torch.nn.Module) -> int:
    """Bytes of a layer's parameters and buffers."""
    tensors = [*layer.parameters(), *layer.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def copies(make: Callable[[int], torch.nn.Module], quick: bool) -> list[torch.nn.Module]:
    """As many layers as are needed to be sure that none is in a cache when its turn comes."""
    first = make(0)
    wanted = 1 if quick else min(12, 1 + int(SPREAD_BYTES / stored_bytes(first)))
    return [first, *(make(seed) for seed in range(1, wanted))]


def product(layers: Sequence[torch.nn.Module], x: torch.Tensor) -> Timer:
    """Times one product, the layers taking turns."""
    with torch.inference_mode():
        for layer in layers:
            layer(x)  # what is prepared once is not counted
    turns = itertools.cycle(layers)

    def seconds() -> float:
        layer = next(turns)
        with torch.inference_mode():
            start = time.perf_counter()
            layer(x)
            return time.perf_counter() - start

    return seconds


def transforms(shape: tuple[int, int]) -> Timer:
    """Times the transforms of one product: inputs there, outputs back."""
    x, y = torch.randn(shape[1], 1), half_spectrum(torch.randn(shape[0], 1))
    number, same = torch.randn(1, 1), half_spectrum(torch.randn(1, 1))

    def seconds() -> float:
        start = time.perf_counter()
        half_spectrum(x)
        inverse_half_spectrum(y, shape[0])
        middle = time.perf_counter()
        half_spectrum(number)
        inverse_half_spectrum(same, 1)
        return (middle - start) - (time.perf_counter() - middle)

    return seconds


def seconds_by_round(timers: Mapping[str, Timer], rounds: int) -> dict[str, list[float]]:
    """Median of each timer in every round, in which they take turns.

    Rounds are short, so that other processes' load falls on all alike. A turn starts with calls
    that do not count, during which the threads of the turn before, which wait busily for a while,
    fall asleep: without the pauses of ``support.interleaved_seconds``, as the products of a model
    follow each other.
    """
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            end = time.perf_counter() + UNCOUNTED_SECONDS
            while time.perf_counter() < end:
                timer()
            times[name].append(statistics.median(timer() for _ in range(CALLS_PER_TURN)))
    return times


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median over the rounds of what the one took, in units of the other."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def read_bandwidth(size: int = 1 << 28) -> float:
    """Bytes per second of summing a large array."""
    data = torch.ones(size // 4)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return size / min(times)


def dense_layer(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> torch.nn.Module:
    """Return torch's layer with small random weights."""
    layer = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    return layer


def layer_rows(
    shapes: Sequence[tuple[str, tuple[int, int]]],
    tokens: int,
    rounds: int,
    quick: bool,
    bandwidth: float,
) -> list[dict[str, Any]]:
    """Time every layer in every type, all of one shape in turn."""
    rows = []
    for model, shape in shapes:
        inputs = {name: torch.randn(tokens, shape[1]).to(t) for name, t in TYPES.items()}
        timers = {"transforms": transforms(shape)}
        for name, dtype in TYPES.items():
            dense = copies(partial(dense_layer, shape, dtype), quick)
            timers[f"dense {name}"] = product(dense, inputs[name])
        limits = {}
        for codec, bits in CODES:
            code = f"{codec} {bits:g}"
            packed = copies(partial(packed_layer, shape, codec, bits), quick)
            limits[code] = stored_bytes(packed[0]) / bandwidth
            timers |= {f"{code} {name}": product(packed, x) for name, x in inputs.items()}
        times = seconds_by_round(timers, rounds)
        seconds = {name: statistics.median(found) for name, found in times.items()}
        layer: dict[str, Any] = {"model": model, "layer": f"{shape[0]} x {shape[1]}"}
        layer |= {f"dense {name} ms": 1e3 * seconds[f"dense {name}"] for name in TYPES}
        for code, limit in limits.items():
            row = layer | {"code": code}
            row |= {f"{name} ms": 1e3 * seconds[f"{code} {name}"] for name in TYPES}
            row |= {
                f"times {name}": median_ratio(times[f"dense {name}"], times[f"{code} {name}"])
                for name in TYPES
            }
            if tokens == 1:
                one = f"{code} bfloat16"
                row["of the limit"] = limit / seconds[one]
                row["transforms"] = median_ratio(times["transforms"], times[one])
                row[OVER_RING] = median_ratio(times[one], times[one.replace("trellis", "ring")])
            rows.append(row)
    return rows


def in_peers(python: Path, module: str, *arguments: str) -> tuple[Any, str]:
    """Run a module in the peers' environment: what it printed, or why it printed nothing."""
    command = [str(python), "-m", f"bench.peers.{module}", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return json.loads(finished.stdout.splitlines()[-1]), ""
    return None, finished.stderr.strip()[-200:]


def peer_rows(python: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Time the layers of others in their own environment."""
    if python is None:
        return []
    shapes = [shape for group in SHAPES.values() for shape in group]
    rows: list[dict[str, Any]] = []
    for peer, repeats in PEER_CALLS.items():
        options = {"shapes": shapes[:1] if quick else shapes, "repeats": 3 if quick else repeats}
        found, reason = in_peers(python, "decode", peer, json.dumps(options))
        rows += found or [{"peer": peer, "reason": reason}]
    return rows


def model_rows(python: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Time generation of a text model with random weights, dense, packed and by the peers."""
    rows = []
    for name, dtype in TYPES.items():
        model = random_text_model(quick).to(dtype)
        rows.append(model_row(f"dense {name}", model))
        for codec, bits in CODES:
            replace_linear(model.model.layers, partial(packed_like, codec, bits))
            rows.append(model_row(f"{codec} {bits:g}, {name}", model))
    for peer in PEER_CALLS if python else ():
        found, reason = in_peers(python, "generate", peer, *(["--quick"] if quick else []))
        rows.append(found or {"model": peer, "reason": reason})
    return rows


def packed_like(codec: str, bits: float, layer: torch.nn.Linear) -> FourierLinear:
    """Return a packed layer of the same size."""
    return packed_layer((layer.out_features, layer.in_features), codec, bits)


def model_row(name: str, model: Any) -> dict[str, Any]:
    """Return a model's row of the table."""
    return {"model": name, "weights MB": stored_bytes(model) / 1e6, **generation(model)}


def targets(
    one: Sequence[dict[str, Any]],
    many: Sequence[dict[str, Any]],
    peers: Sequence[dict[str, Any]],
    agreement: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Judge the layers of LLaVA-1.5-7B, and the answers of the tiny model."""
    rows = []
    nf4_ms = {row.get("layer"): row.get("bfloat16 ms") for row in peers if row["peer"] == NF4}
    for row in one[: 2 * len(CODES)]:
        bounds = {"ring 4": 2.5, "ring 2": 4.0}
        if row["code"] in bounds:
            what = f"one token, {row['layer']}, {row['code']}: times dense bfloat16"
            rows.append(support.target(what, row["times bfloat16"], bounds[row["code"]], True))
            what = f"one token, {row['layer']}, {row['code']}: share of the transforms"
            rows.append(support.target(what, row["transforms"], 0.15, False))
            if nf4 := nf4_ms.get(row["layer"]):
                what = f"one token, {row['layer']}, {row['code']}: times NF4 of bitsandbytes"
                rows.append(support.target(what, nf4 / row["bfloat16 ms"], 2.0, True))
        if row["code"].startswith("trellis"):
            what = f"one token, {row['layer']}, {row['code']}: times as long as ring"
            rows.append(support.target(what, row[OVER_RING], 2.0, False))
    for row in many:
        if row["code"] == "ring 4":
            for name, bound in (("float32", 1.2), ("bfloat16", 1.5)):
                what = f"512 tokens, {row['layer']}, {row['code']}, {name}: times as long as dense"
                rows.append(support.target(what, 1 / row[f"times {name}"], bound, False))
    worst = max(row["difference of logits"] for row in agreement)
    rows.append(support.target("packed against dense, float32: logits", worst, 1e-3, False))
    others = sum(row["other answers"] for row in agreement)
    rows.append(support.target("packed against dense, float32: other answers", others, 0, False))
    return rows


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "decode_speed")
    parser.add_argument("--peers-python", type=Path, help="interpreter that has the peers")
    arguments = parser.parse_args()
    quick = arguments.quick
    shapes = [(model, shape) for model, group in SHAPES.items() for shape in group]
    if quick:
        shapes = [("small", (256, 192)), ("small", (320, 256))]
    bandwidth = read_bandwidth(1 << 22 if quick else 1 << 28)
    one = layer_rows(shapes, 1, 1 if quick else ROUNDS, quick, bandwidth)
    rounds = 1 if quick else ROUNDS_OF_MANY
    few = layer_rows(shapes[:1], 5 if quick else 36, rounds, quick, bandwidth)
    many = layer_rows(shapes[:1], 8 if quick else 512, rounds, quick, bandwidth)
    peers = peer_rows(arguments.peers_python, quick)
    agreement = agreement_rows(CODES[:1] if quick else CODES, 8 if quick else 40)
    judged = targets(one, many, peers, agreement)
    if quick:
        for row in judged:
            row["met"] = None  # a smoke run's sizes are not the target's
    tables = {"One token": one, "36 tokens": few, "512 tokens": many}
    tables |= {"Peers, one token": peers} if peers else {}
    tables |= {
        "A model": model_rows(arguments.peers_python, quick),
        "Packed against dense": agreement,
    }
    tables |= {"Targets": judged}
    figures = {"read_gbytes_per_second": bandwidth / 1e9}
    support.publish("decode_speed", arguments.json, tables, figures)


if __name__ == "__main__":
    main()

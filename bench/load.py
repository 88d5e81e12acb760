"""How much memory does a loaded packed model take, and how long does loading it last?

A text model with random bfloat16 weights is compressed at several settings. Then each folder is
loaded in turn, in a process of its own that has loaded a very small folder of the same kind before,
so that imports do not count. Files are in the system's cache for all.

1. Seconds of ``from_pretrained``, against those of the dense checkpoint in the same rounds; and
   until every page of the weights is resident, because transformers maps files into memory, so that
   loading itself reads hardly anything.
2. Resident memory that loading, all pages and a first token have added, against the bytes of the
   packed tensors and of what stays dense.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import support

# Name to the options of compression; the dense checkpoint has none. By "decoded" the folder of
# ring 4 is loaded into dense layers.
SETTINGS: dict[str, dict[str, Any]] = {
    "ring 2": {"bits": 2},
    "ring 4": {"bits": 4},
    "ring 4, rank 16": {"bits": 4, "rank": 16, "max_alternations": 1},
}
DENSE, DECODED = "dense", "ring 4, decoded"
BYTES, LOADING, RESIDENT = "resident over stored", "loading over dense", "all pages over dense"
PAGE = 4096
# Stored packed bytes may take so much more; what stays dense takes what it takes.
PACKED_ALLOWANCE = 1.1


def make_folders(root: Path, quick: bool) -> None:
    """Write the dense checkpoint and its compressed ones, and the small ones of the warm-up."""
    from bench.random_model import random_text_model
    from llava_fa import CompressionConfig, compress_checkpoint

    for place, small in ((root, quick), (root / "small", True)):
        random_text_model(small).bfloat16().save_pretrained(place / DENSE)
        for name, options in SETTINGS.items():
            config = CompressionConfig(**options)
            compress_checkpoint(place / DENSE, place / name, config, progress=False)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def load(folder: Path, name: str) -> Any:
    """Load as a user does, with the runtime that the name of the measurement means."""
    from transformers import AutoModelForCausalLM

    from llava_fa.hf import LlavaFaConfig

    config = LlavaFaConfig(runtime="dense" if name == DECODED else "packed")
    options = {} if name == DENSE else {"quantization_config": config}
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def read_pages(model: Any) -> None:
    """Read a byte of every page of the model's tensors."""
    import torch

    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.detach().reshape(-1).view(torch.uint8)[::PAGE].sum()


def run_once(root: Path, name: str) -> dict[str, float]:
    """In a process of its own: load one folder and use it."""
    import torch

    folder = "ring 4" if name == DECODED else name
    token = torch.zeros(1, 1, dtype=torch.long)
    with torch.inference_mode():
        load(root / "small" / folder, name)(token)
        gc.collect()
        before = resident_bytes()
        start = time.perf_counter()
        model = load(root / folder, name)
        loaded = time.perf_counter() - start
        read_pages(model)
        resident = time.perf_counter() - start
        model(token)
        gc.collect()
        after = resident_bytes()
    return {"loaded": loaded, "resident": resident, "added": after - before}


def in_process(root: Path, name: str) -> dict[str, float]:
    """Run one measurement in a fresh process."""
    command = [sys.executable, "-m", "bench.load", "--root", str(root), "--once", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def stored_bytes(root: Path, name: str) -> tuple[int, int]:
    """Bytes of a folder's packed tensors, and of all others as they are loaded."""
    from llava_fa.packed_checkpoint import PackedCheckpoint
    from llava_fa.shards import Checkpoint

    if name not in SETTINGS:
        return 0, Checkpoint.open(root / DENSE).nbytes
    packed = sum(spec.nbytes for spec in PackedCheckpoint.open(root / name).specs.values())
    return packed, Checkpoint.open(root / name).nbytes - packed


def row_of(
    root: Path, name: str, runs: Sequence[dict[str, float]], dense: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """The medians of a folder's runs; of ratios, the median over rounds."""
    middle = {key: median(run[key] for run in runs) for key in runs[0]}
    packed, other = stored_bytes(root, name)

    def over_dense(key: str) -> float:
        return median(run[key] / other[key] for run, other in zip(runs, dense, strict=True))

    return {
        "model": name,
        "packed MB": packed / 1e6,
        "dense parts MB": other / 1e6,
        "resident MB": middle["added"] / 1e6,
        BYTES: middle["added"] / (packed + other),
        "loading s": middle["loaded"],
        LOADING: over_dense("loaded"),
        "all pages s": middle["resident"],
        RESIDENT: over_dense("resident"),
    }


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the packed folders."""
    judged = []
    for row in rows:
        if row["model"] in SETTINGS:
            allowed = PACKED_ALLOWANCE * row["packed MB"] + row["dense parts MB"]
            share = row["resident MB"] / allowed
            what = f"{row['model']}: resident memory, of 1.1 times packed bytes plus dense parts"
            judged.append(support.target(what, share, 1.0, False))
            for key, what in ((LOADING, "loading"), (RESIDENT, "loading all pages")):
                words = f"{row['model']}: time of {what}, of the dense checkpoint's"
                judged.append(support.target(words, row[key], 1.0, False))
    return judged


def measure(root: Path, rounds: int) -> list[dict[str, Any]]:
    """Load all folders in turn, ``rounds`` times."""
    names = [DENSE, *SETTINGS, DECODED]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names:
            found = in_process(root, name)
            if number >= 0:  # the first round reads the files into the cache
                runs[name].append(found)
    return [row_of(root, name, runs[name], runs[DENSE]) for name in names]


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "load")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(run_once(arguments.root, arguments.once)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_folders(root, arguments.quick)
        rows = measure(root, 1 if arguments.quick else arguments.rounds)
    judged = targets(rows)
    if arguments.quick:
        for row in judged:
            row["met"] = None  # a smoke run's sizes are not the target's
    figures = {"rounds": arguments.rounds}
    support.publish("load", arguments.json, {"Loading": rows, "Targets": judged}, figures)


if __name__ == "__main__":
    main()

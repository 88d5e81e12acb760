"""Peak memory of compressing a checkpoint of many shards, against its largest matrix alone.

Bound: 1.5 times the working set of the largest matrix, as measured by reading and compressing that
matrix alone, plus 500 MB. Writes ``bench/results/peak_memory.json``.

    python bench/peak_memory.py [--size 4096] [--matrices 12]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "peak_memory.json"
SLACK_BYTES = 500e6


def make_checkpoint(folder: Path, size: int, matrices: int) -> int:
    """Write a Llama checkpoint whose ``matrices`` big matrices are each in a shard of its own.

    Returns
    -------
    int
        Bytes of all tensors.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    per_layer = 4  # q, k, v, o; the MLP is kept narrow so that these are the largest
    config = LlamaConfig(
        hidden_size=size,
        intermediate_size=256,
        num_hidden_layers=matrices // per_layer,
        num_attention_heads=32,
        vocab_size=256,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in LlamaForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weight_map, total = {}, 0
    for number, (name, shape) in enumerate(shapes.items()):
        file = f"model-{number + 1:05d}-of-{len(shapes):05d}.safetensors"
        tensor = torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
        save_file({name: tensor}, folder / file, {"format": "pt"})
        weight_map[name] = file
        total += tensor.numel() * 2
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def run_matrix(source: str, rank: int) -> dict[str, int]:
    """In a process of its own: compress the largest matrix; memory before it and at the peak."""
    import torch

    from llava_fa import CompressionConfig, compress_matrix
    from llava_fa.shards import Checkpoint

    tensors = Checkpoint.open(source).tensors
    largest = max(tensors.values(), key=lambda entry: entry.nbytes)
    small = torch.randn(64, 64)
    # Everything that is loaded once whatever the size must be loaded before the baseline is taken.
    compress_matrix(small, CompressionConfig(bits=3, rank=min(rank, 8))).relative_error(small)
    before = resident_bytes()
    weight = largest.read()
    compress_matrix(weight, CompressionConfig(bits=3, rank=rank)).relative_error(weight)
    return {"before": before, "peak": peak_bytes()}


def run_checkpoint(source: str, output: str, rank: int) -> dict[str, int]:
    """In a process of its own: compress the checkpoint; memory at the peak."""
    from llava_fa import CompressionConfig
    from llava_fa.compress import compress_checkpoint

    config = CompressionConfig(bits=3, rank=rank)
    compress_checkpoint(source, output, config, progress=False, max_shard_size="20MB")
    return {"peak": peak_bytes()}


def in_process(*arguments: object) -> dict[str, Any]:
    """Run one of the two measurements in a fresh process."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(size: int, matrices: int, rank: int) -> dict[str, Any]:
    """Measure one setting and judge it."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        source.mkdir()
        total = make_checkpoint(source, size, matrices)
        alone = in_process("--one-matrix", source, "--rank", rank)
        whole = in_process("--one-checkpoint", source, Path(temporary) / "output", "--rank", rank)
    working_set = alone["peak"] - alone["before"]
    bound = 1.5 * working_set + SLACK_BYTES
    return {
        "matrix": [size, size],
        "rank": rank,
        "big_matrices": matrices,
        "checkpoint_bytes": total,
        "working_set_of_one_matrix_bytes": working_set,
        "peak_bytes": whole["peak"],
        "bound_bytes": int(bound),
        "within_bound": whole["peak"] <= bound,
    }


def main() -> None:
    """Measure without and with a low-rank part, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--matrices", type=int, default=12, help="a multiple of 4")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--one-matrix", help=argparse.SUPPRESS)
    parser.add_argument("--one-checkpoint", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_matrix:
        print(json.dumps(run_matrix(arguments.one_matrix, arguments.rank)))
        return
    if arguments.one_checkpoint:
        print(json.dumps(run_checkpoint(*arguments.one_checkpoint, arguments.rank)))
        return
    results = [measure(arguments.size, arguments.matrices, rank) for rank in (0, 64)]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    for result in results:
        print(
            f"rank {result['rank']}: checkpoint {result['checkpoint_bytes'] / 1e6:.0f} MB, one "
            f"matrix works in {result['working_set_of_one_matrix_bytes'] / 1e6:.0f} MB; peak "
            f"{result['peak_bytes'] / 1e6:.0f} MB, bound {result['bound_bytes'] / 1e6:.0f} MB: "
            f"{'within' if result['within_bound'] else 'ABOVE'}"
        )


if __name__ == "__main__":
    main()

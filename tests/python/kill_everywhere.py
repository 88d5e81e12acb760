"""Kills a compression at every change it makes on disk, resumes it, and compares the results.

Run as ``python kill_everywhere.py SOURCE FOLDER MODE [STRIDE]``; prints how many places it tried,
every one or every STRIDE-th. Each attempt is a forked child, so that the imports are paid once; the
parent never computes, so that no thread pool exists when it forks.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from conftest import folder_bytes
from llava_fa import CompressionConfig, writer
from llava_fa.compress import compress_checkpoint
from llava_fa.modules import build_meta_model, map_layers
from llava_fa.shards import Checkpoint

# Killed before a sync, the disk looks as it does before the replacement that follows.
CHANGES = ("_write", "_replace", "_remove")


DATA = [{"input_ids": torch.arange(begin, begin + 12)[None] % 16} for begin in (0, 3)]


def compress(source: Path, output: Path, mode: str) -> None:
    options: dict[str, Any] = {}
    if mode != "plain":  # so little memory that every input is a group
        options = {"calibration_data": DATA, "calibration_order": mode, "calibration_memory": 1}
    if mode == "one-pass":
        options["save_calibration"] = output.with_suffix(".moments")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fewer rows")
        config = CompressionConfig(bits=3)
        compress_checkpoint(source, output, config, progress=False, max_shard_size="3KB", **options)


def result(output: Path) -> dict[str, bytes]:
    """Return all that a compression wrote."""
    moments = output.with_suffix(".moments")
    saved = {"moments": moments.read_bytes()} if moments.exists() else {}
    return {**folder_bytes(output), **saved}


def kill_at(countdown: int) -> None:
    """Make the process kill itself in the middle of a certain change on disk."""
    left = [countdown]

    def wrap(original: Callable[..., None], name: str) -> Callable[..., None]:
        def change(first: Any, *rest: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                if name == "_write":  # half of it gets there
                    original(first, rest[0][: len(rest[0]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            original(first, *rest)

        return change

    for name in CHANGES:
        setattr(writer, name, wrap(getattr(writer, name), name))


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; return the signal that ended it, or 0. A failure ends everything."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main() -> None:
    source, folder, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    stride = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    torch.set_num_threads(1)
    # A killed process loses nothing that it wrote (only a power cut would), so waiting for the disk
    # thousands of times would test nothing more.
    mock.patch.object(os, "fsync").start()
    checkpoint = Checkpoint.open(source)
    map_layers(checkpoint, build_meta_model(checkpoint))  # imports what the children need
    whole, output = folder / "whole", folder / "output"
    assert in_child(lambda: compress(source, whole, mode)) == 0
    expected = result(whole)
    for place in itertools.count(1, stride):

        def killed(place: int = place) -> None:
            kill_at(place)
            compress(source, output, mode)

        if in_child(killed) == 0:
            break  # it made fewer changes than that: all places were tried
        assert in_child(lambda: compress(source, output, mode)) == 0
        if result(output) != expected:
            raise SystemExit(f"killed at change {place}: the resumed output differs")
        shutil.rmtree(output)
        output.with_suffix(".moments").unlink(missing_ok=True)
    tried = (place - 1) // stride
    print(f"{tried} places, {len(list(whole.glob('*.safetensors')))} shards")


if __name__ == "__main__":
    main()

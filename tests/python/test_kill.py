"""SIGKILL at every change on disk, then resume: the output is the same byte for byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import llama_model


@pytest.mark.parametrize(
    ("mode", "stride"),
    # With calibration a place takes three times as long; a stride of 3 meets every kind of change.
    [("plain", 1), ("one-pass", 3), ("sequential", 3)],
)
def test_killed_anywhere_then_resumed(mode: str, stride: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    llama_model(vocab_size=16).save_pretrained(source)
    driver = Path(__file__).with_name("kill_everywhere.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(source), str(tmp_path), mode, str(stride)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    places, shards = map(int, re.findall(r"\d+", done.stdout)[-2:])
    assert places * stride > 100
    assert shards > 1

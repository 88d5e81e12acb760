"""The bench of compression on GPUs, with the CPU in place of one: its settings and its counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import gpu_compression
from bench.gpu_compression import SETTINGS, Setting, operations
from llava_fa import CompressionConfig


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(multi_processor_count=100, clock_rate=1e6, name="a CPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_compression, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(gpu_compression, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu_compression, "use_own_stream", lambda device: None)


@pytest.mark.usefixtures("cpu_as_gpu")
def test_every_setting_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "gpu_compression.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--json", str(record)])
    gpu_compression.main()
    found = json.loads(record.read_text())
    rows = found["tables"]["Matrices"]
    assert [row["setting"] for row in rows] == [setting.name for setting in SETTINGS]
    assert all(0 < row["of the bound"] < 1 < row["in flight, ms each"] for row in rows)
    targets = found["tables"]["Targets"]
    assert len(targets) == sum(setting.target_seconds is not None for setting in SETTINGS)
    assert all(target["met"] is None for target in targets)


def test_arithmetic_is_counted() -> None:
    shape, entries = (6, 8), 4 * 8
    plain = CompressionConfig(bits=4)
    assert operations(shape, Setting("", plain)) == 0
    rank = Setting("", plain.replace(rank=2, max_alternations=3))
    # 6 products of the first pass, 2 of each of the others and of the refit; 4 subtractions.
    assert operations(shape, rank) == 4 * entries * ((6 + 2 * 2 + 2) * 12 + 4 * 2)
    assert operations(shape, Setting("", plain, fed_back=True)) == 4 * (entries * 8 + 8**3 / 6)
    trellis = CompressionConfig(bits=4, codec="trellis", state_bits=9)
    assert operations(shape, Setting("", trellis)) == 7.5 * entries * 512

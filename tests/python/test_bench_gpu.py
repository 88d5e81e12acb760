"""The bench of compression on GPUs, with the CPU in place of one: its settings and its counts."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import gpu_compression, gpu_kernels
from bench.gpu_compression import SETTINGS, Setting, operations
from bench.gpu_kernels import H200, WORKS, Rates, Work, bounds, seconds_by_kernel
from llava_fa import CompressionConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(multi_processor_count=100, clock_rate=1e6, name="a CPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_compression, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(gpu_compression, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu_compression, "own_streams", lambda device, count: lambda: None)


@pytest.mark.usefixtures("cpu_as_gpu")
def test_every_setting_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "gpu_compression.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--json", str(record)])
    gpu_compression.main()
    found = json.loads(record.read_text())
    rows = found["tables"]["Matrices"]
    assert [row["setting"] for row in rows] == [setting.name for setting in SETTINGS]
    assert all(0 < row["of the bound"] < 1 < row["in flight, ms each"] for row in rows)
    assert [row["channels"] for row in found["tables"]["Second moments"]] == [1024]
    assert all(row["of the bound"] > 0 for row in found["tables"]["Second moments"])
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


def test_every_kernel_has_a_bound() -> None:
    compiled = set()
    for source in (ROOT / "cpp" / "src" / "cuda").glob("*.cu"):
        compiled |= set(re.findall(r"LLAVA_FA_COMPILE_KERNEL\((\w+)", source.read_text()))
    assert {work.kernel for works in WORKS.values() for work in works} == compiled
    assert all(row["bound us"] > 0 for row in bounds(H200))


def test_the_longer_time_is_the_bound() -> None:
    rates = Rates(memory=10.0, single=4.0, double=2.0, tensor=100.0, multiprocessors=8)
    assert Work("", memory=20, single=4).bound(rates) == (2.0, "memory")
    assert Work("", memory=20, single=12).bound(rates) == (3.0, "float32")
    assert Work("", double=12, tensor=500).bound(rates) == (6.0, "float64")
    assert Work("", tensor=500).bound(rates) == (5.0, "tensor cores")
    assert Work("", single=4, blocks=2).bound(rates) == (4.0, "float32 of 2 multiprocessors")
    assert Work("", single=4, blocks=80).bound(rates) == (1.0, "float32")


def test_launches_are_told_apart_by_their_names() -> None:
    of_code = "llava_fa::cuda::PointProduct<llava_fa::cuda::ConstellationTable, 8>"
    found = seconds_by_kernel(
        [
            (f"void llava_fa::cuda::run<{of_code} >({of_code})", 3.0),
            ("void llava_fa::cuda::run<llava_fa::cuda::Gram>(llava_fa::cuda::Gram)", 5e6),
            (f"void llava_fa::cuda::run<{of_code} >({of_code})", 4.0),
            ("Memcpy HtoD (Pageable -> Device)", 9.0),
            ("void at::native::elementwise_kernel<128, 2>()", 9.0),
        ]
    )
    assert found == pytest.approx({"PointProduct": 7e-6, "Gram": 5.0})


def test_times_are_set_against_the_bounds() -> None:
    measured = {(name, work.kernel): 1.0 for name, works in WORKS.items() for work in works}
    for row in bounds(H200, measured):
        assert (row["us"], row["of the bound"]) == (1e6, pytest.approx(row["bound us"] / 1e6))
    with pytest.raises(KeyError):
        bounds(H200, {})


def test_kernels_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(name: str) -> dict[str, float]:
        return {work.kernel: 1e-3 for work in WORKS[name]}

    monkeypatch.setattr(gpu_kernels, "device_rates", lambda: H200)
    monkeypatch.setattr(gpu_kernels, "works", lambda: {name: name for name in WORKS})
    monkeypatch.setattr(gpu_kernels, "kernel_seconds", launched)
    device = SimpleNamespace(name="a CPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    record = tmp_path / "gpu_kernels.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(record)])
    gpu_kernels.main()
    found = json.loads(record.read_text())
    assert found["rates"]["multiprocessors"] == 132
    assert len(found["tables"]["Kernels"]) == sum(map(len, WORKS.values()))

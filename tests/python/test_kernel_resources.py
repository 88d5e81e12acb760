"""What nvcc makes of the kernels: registers and memory within budget, and nothing left out.

Runs where nvcc is installed; needs no GPU. The build itself refuses spills on every architecture.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "cpp" / "src" / "cuda").glob("*.cu"))
REGISTERS_PER_MULTIPROCESSOR = 65536
# 18 products with codes, 2 transforms, 7 for many activations and the low rank; of compression 8
# for spectra and codes and 2 for the way back, 2 searches of the trellis, 9 of error feedback, 6 of
# the low rank.
KERNELS = 54

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """PTX of every kernel, and what the assembler says of it, by mangled name."""
    folder = tmp_path_factory.mktemp("ptx")
    found = {}
    for source in SOURCES:
        ptx = folder / f"{source.stem}.ptx"
        options = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT}/cpp/include"]
        host = ["-Xcompiler=-Wno-unknown-pragmas"]
        nvcc = ["nvcc", *options, *host, "-arch=compute_80", "-ptx", str(source), "-o", str(ptx)]
        subprocess.run(nvcc, check=True)
        assembler = ["ptxas", "-v", "-arch=sm_80", str(ptx), "-o", "/dev/null"]
        log = subprocess.run(assembler, capture_output=True, text=True, check=True).stderr
        bodies = re.split(r"^\.visible \.entry ", ptx.read_text(), flags=re.MULTILINE)[1:]
        reports = re.split(r"Compiling entry function '", log)[1:]
        notes = {report.partition("'")[0]: report for report in reports}
        found |= {name: (body, notes[name]) for body in bodies if (name := body.split("(")[0])}
    return found


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match, pattern
    return int(match[1])


def test_all_kernels_are_there(kernels: dict[str, tuple[str, str]]) -> None:
    assert len(kernels) == KERNELS


def test_registers_and_memory_are_within_budget(kernels: dict[str, tuple[str, str]]) -> None:
    for name, (body, note) in kernels.items():
        threads = number(r"\.maxntid (\d+)", body)
        blocks = number(r"\.minnctapersm (\d+)", body)
        assert number(r"Used (\d+) registers", note) * threads * blocks <= (
            REGISTERS_PER_MULTIPROCESSOR
        ), name
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in note, name
        assert " bytes smem" not in note, name  # all of it is asked for at the launch


def test_no_kernel_calls_what_runs_only_on_the_host(kernels: dict[str, tuple[str, str]]) -> None:
    # The compiler lets a device function call a constexpr one, and makes a trap of what it cannot
    # compile in it.
    for name, (body, _) in kernels.items():
        assert not re.search(r"^\s*(trap|call)\b", body, flags=re.MULTILINE), name


@pytest.mark.parametrize("table", ["ConstellationTable", "TrellisTable"])
def test_products_load_16_bytes_at_once(kernels: dict[str, tuple[str, str]], table: str) -> None:
    products = [
        (int(match[1]), body)
        for name, (body, _) in kernels.items()
        if (match := re.search(rf"PointProduct.*{table}ELi(\d+)E", name))
    ]
    assert len(products) == (10 if table == "ConstellationTable" else 8)
    for bits, body in products:
        columns = 4 if bits % 2 == 0 else 8
        assert body.count("ld.global.nc.v4") == columns * bits // 8
        assert body.count("fma.rn.f32") == 16 * columns * 4  # rows, columns, parts of a product

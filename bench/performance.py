"""Writes bounds and figures into ``docs/performance.md``: ``python -m bench.performance``.

Bounds of the GPU's kernels are those of ``bench.gpu_kernels``: with measured times where
``bench/results/gpu.json`` holds them, else for an H200 by its data sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import readme
from bench.gpu_kernels import COLS, H200, ROWS, bounds
from bench.support import RESULTS, markdown

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def _machine(found: Mapping[str, Any]) -> str:
    return f"{readme.processor(found)}, by `{found['command']}`"


def products_section() -> str:
    """One token on a CPU against the time in which its codes are read."""
    found = readme.load("decode_speed")
    columns = {
        "layer": "layer",
        "code": "code",
        "bfloat16 ms": "ms",
        "of the limit": "of the bound",
        "transforms": "share of the transforms",
    }
    rows = [
        {new: row[old] for old, new in columns.items()}
        for row in found["tables"]["One token"]
        if row["model"] == "LLaVA-1.5-7B"
    ]
    return (
        f"{_machine(found)}; memory was read at {found['read_gbytes_per_second']:.1f} GB/s.\n\n"
        f"{markdown(rows)}"
    )


def compression_section() -> str:
    """Matrices compressed on a CPU against their arithmetic and their memory."""
    found = readme.load("compress_speed")
    columns = {
        "matrix": "matrix",
        "rank": "rank",
        "bits": "bits",
        "alternations": "alternations",
        "library s": "s",
        "fraction of limit": "of the bound",
    }
    rows = [
        {new: row[old] for old, new in columns.items()} for row in found["tables"]["Side by side"]
    ]
    return f"{_machine(found)}.\n\n{markdown(rows)}\n\n{_feedback()}"


def _feedback() -> str:
    found = readme.load("feedback_speed")
    rows = next(iter(found["tables"].values()))
    row = next(row for row in rows if "fraction of peak" in row)
    return (
        f"Error feedback adds {row['s added']:.1f} s to a 4096 x 4096 matrix ({_machine(found)}): "
        f"{100 * row['fraction of peak']:.0f} % of the speed of sgemm."
    )


def kernels_section() -> str:
    """Every kind of kernel on a GPU, with its time if one has been measured."""
    record = RESULTS / "gpu.json"
    layer = f"One layer of {ROWS} x {COLS}, all launches of a kernel together"
    if record.exists():
        found = readme.load("gpu")
        rows: Sequence[Mapping[str, Any]] = found["tables"]["gpu_kernels: Kernels"]
        return f"{layer}, on {found['device_and_driver']}.\n\n{markdown(rows)}"
    return (
        f"{layer}. **No kernel has been timed yet**; bounds for an H200 by its data sheet "
        f"({H200.memory / 1e12:g} TB/s, {2 * H200.single / 1e12:g} TFLOP/s in float32, "
        f"{H200.tensor / 1e12:g} on tensor cores).\n\n{markdown(bounds(H200))}"
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "products": products_section,
    "compression": compression_section,
    "kernels": kernels_section,
}


def main() -> None:
    """Rewrite the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(readme.filled(text, SECTIONS), encoding="utf-8")


if __name__ == "__main__":
    main()

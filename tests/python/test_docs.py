"""The documents: every path that they name exists, and generated tables are what the code gives.

``python tests/python/test_docs.py --write`` regenerates the tables.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import llava_fa
from bench import performance, readme

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FORMAT = ROOT / "docs" / "format.md"
START, END = "<!-- constellations -->", "<!-- end of constellations -->"
FOLDERS = "cpp|cuda|bindings|python|tests|tools|bench|docs|examples"
PATH = re.compile(rf"`((?:{FOLDERS})/[A-Za-z0-9_./-]+)`")


def constellation_tables() -> str:
    lines = []
    for codec in ("ring", "product", "uniform"):
        for bits in range(1, 11):
            rings = llava_fa.constellation(codec, bits)["rings"]
            cells = [f"{radius:.8g} ({phases}, {offset:g})" for radius, phases, offset in rings]
            lines.append(
                f"**`{codec}`, {bits} bits** — radius (phases, offset): {'; '.join(cells)}"
            )
            lines.append("")
    return "\n".join(lines).rstrip()


def documented_tables() -> str:
    return FORMAT.read_text().split(START)[1].split(END)[0].strip()


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"\d+\.?\d*(?:e-?\d+)?", text)]


def test_format_states_the_constellations_that_the_library_uses():
    documented, actual = documented_tables(), constellation_tables()
    # Radii may differ in the last digit of float32 between compilers; everything else is exact.
    assert re.sub(r"\d+\.\d+", "x", documented) == re.sub(r"\d+\.\d+", "x", actual)
    assert numbers(documented) == pytest.approx(numbers(actual), rel=1e-6)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_named_in_documents_exist(document):
    missing = [path for path in PATH.findall(document.read_text()) if not (ROOT / path).exists()]
    assert not missing


def test_documents_that_the_readme_promises_are_there():
    names = {path.name for path in DOCUMENTS}
    promised = {"format.md", "method.md", "dependencies.md", "architecture.md", "architectures.md"}
    promised |= {"serving.md", "cuda.md"}
    assert promised | {"README.md"} <= names


def test_readme_quotes_the_results_as_they_are():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text, readme.SECTIONS) == text, "run: python -m bench.readme"


def test_performance_states_the_bounds_and_what_was_measured():
    text = performance.DOCUMENT.read_text(encoding="utf-8")
    assert readme.filled(text, performance.SECTIONS) == text, "run: python -m bench.performance"


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    before, rest = FORMAT.read_text().split(START)
    after = rest.split(END)[1]
    FORMAT.write_text(f"{before}{START}\n\n{constellation_tables()}\n\n{END}{after}")

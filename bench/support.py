"""What every bench needs and none is about: options, the machine, tables, result files, timing."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
Row = Mapping[str, Any]
PAUSE_SECONDS = 0.3


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """The options that all benches share; the first line of the module's docstring is the help."""
    lines = (description or name).strip().splitlines()
    made = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=lines[0])
    made.add_argument("--quick", action="store_true", help="a smoke run: small sizes, few samples")
    made.add_argument(
        "--json",
        type=Path,
        default=RESULTS / f"{name}.json",
        metavar="PATH",
        help="where the figures go; the table goes beside it as .md (default: %(default)s)",
    )
    return made


def machine() -> dict[str, Any]:
    """Processor, cores, versions and how busy it is; no date and no host name."""
    model = platform.processor() or platform.machine()
    flags: set[str] = set()
    if (info := Path("/proc/cpuinfo")).exists():
        pairs = (line.partition(":") for line in info.read_text().splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        model = fields.get("model name", model)
        flags = set(fields.get("flags", "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model,
        "cores": cores,
        "load_average": os.getloadavg()[0],
        "vector_instructions": [name for name in ("avx2", "fma", "avx512f") if name in flags],
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("llava-fa", "torch", "numpy", "scipy")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def command(name: str) -> str:
    """The command line that reproduces this run from the repository's root."""
    return shlex.join(["python", "-m", f"bench.{name}", *sys.argv[1:]])


def show(value: Any) -> str:
    """A figure as the tables print it: four significant digits, text as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def markdown(rows: Sequence[Row]) -> str:
    """Rows of equal or different keys as one Markdown table, columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[show(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)
    ]

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(v.ljust(w) for v, w in zip(values, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(columns), rule, *(line(values) for values in cells)])


def publish(
    name: str, path: Path, tables: Mapping[str, Sequence[Row]], figures: Mapping[str, Any]
) -> None:
    """Print the tables and write ``path`` (JSON) and the Markdown tables beside it.

    Parameters
    ----------
    name : str
        The bench, as in ``python -m bench.NAME``.
    tables : mapping of heading to rows
        What is printed and what ``.md`` holds; they go into the JSON too.
    figures : mapping
        Further figures for the JSON alone.
    """
    host = machine()
    origin = {"command": command(name), "machine": host}
    body = [f"# {name}", "", f"`{origin['command']}`", ""]
    body += [f"{host['processor']}, {host['cores']} cores, torch {host['packages']['torch']}", ""]
    for heading, rows in tables.items():
        body += [f"## {heading}", "", markdown(rows), ""]
        print(f"\n{heading}\n{markdown(rows)}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**origin, **figures, "tables": {key: list(rows) for key, rows in tables.items()}}
    path.write_text(json.dumps(_plain(record), indent=1) + "\n")
    path.with_suffix(".md").write_text("\n".join(body))


def _plain(value: Any) -> Any:
    """The value with tuples as lists and non-finite numbers as null, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def target(what: str, value: float, bound: float, at_least: bool) -> dict[str, Any]:
    """A figure to reach as a table's row, with the verdict."""
    met = value >= bound if at_least else value <= bound
    words = f"at {'least' if at_least else 'most'} {bound:g}"
    return {"figure": what, "measured": value, "target": words, "met": met}


def interleaved_seconds(
    tasks: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each task in each of ``repeats`` rounds, the tasks taking turns.

    Taking turns spreads the load of other processes over all tasks alike. A pause before each lets
    the threads of the other task's OpenMP runtime, which wait busily for a while, fall asleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return seconds

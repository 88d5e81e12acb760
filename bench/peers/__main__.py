"""Runs an adapter in the peers' environment, or tells which ones can run.

``python -m bench.peers --versions`` prints a JSON object: adapter to version of its package, or to
null if it is not installed. Otherwise: ``python -m bench.peers ADAPTER INDEX TASK ANSWER SEED``.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.peers.task import ADAPTERS, read_task, write_answer


def versions() -> dict[str, str | None]:
    """Return the installed version of every adapter's package."""
    found: dict[str, str | None] = {}
    for name in ADAPTERS:
        try:
            found[name] = version(importlib.import_module(f"bench.peers.{name}").PACKAGE)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1:] == ["--versions"]:
        print(json.dumps(versions()))
        return
    name, index, task, answer, seed = sys.argv[1:]
    adapter = importlib.import_module(f"bench.peers.{name}")
    setting = adapter.SETTINGS[int(index)]
    results = adapter.quantize(read_task(Path(task)), dict(setting.options), int(seed))
    write_answer(Path(answer), results)


if __name__ == "__main__":
    main()

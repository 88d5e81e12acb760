"""Rows of the comparison that peers fill in, each in a process of the peers' environment."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bench import baselines
from bench.methods import Method, Skipped, UnavailableError
from bench.peers import task as task_module
from bench.peers.task import ADAPTERS, Setting, Task, read_answer, write_task
from bench.tiny_model import ROOT, Candidate

Tensors = Mapping[str, Tensor]


def peer_rows(
    python: Path | None, model: Path, calibration: int, only: str = ""
) -> list[Method | Skipped]:
    """Return a row per setting of every adapter.

    Parameters
    ----------
    python : Path or None
        Interpreter of the peers' environment; without one all rows are skipped.
    model : Path
        The checkpoint.
    calibration : int
        Questions that give the calibration's moments.
    only : str
        Regular expression on "NAME BITS"; if nothing matches, the interpreter is not asked.
    """
    settings = [
        (adapter, index, setting)
        for adapter in ADAPTERS
        for index, setting in enumerate(importlib.import_module(f"bench.peers.{adapter}").SETTINGS)
        if re.search(only, f"{setting.label} {setting.bits:g}")
    ]
    if not settings:
        return []
    if python is None:
        reason = "no --peers-python was given"
        return [Skipped(setting.label, setting.bits, reason) for _, _, setting in settings]
    versions = json.loads(_run(python, "--versions"))
    return [
        _row(python, model, calibration, adapter, index, setting, versions[adapter])
        if versions[adapter]
        else Skipped(setting.label, setting.bits, "its package is not installed there")
        for adapter, index, setting in settings
    ]


def _row(
    python: Path,
    model: Path,
    calibration: int,
    adapter: str,
    index: int,
    setting: Setting,
    version: str,
) -> Method:
    def compress(weights: Tensors, moments: Tensors, seed: int) -> Candidate:
        with tempfile.TemporaryDirectory() as folder:
            request, answer = Path(folder, "task"), Path(folder, "answer")
            write_task(request, Task(dict(weights), dict(moments), model.resolve(), calibration))
            _run(python, adapter, str(index), str(request), str(answer), str(seed))
            results = read_answer(answer)
        return Candidate(
            {name: result.dense for name, result in results.items()},
            sum(result.stored_bits for result in results.values()),
        )

    return Method(
        setting.label,
        setting.bits,
        compress,
        setting.seeded,
        {**setting.options, "version": version, "calibration": calibration},
        [
            Path(__file__).parent / f"{adapter}.py",
            Path(task_module.__file__ or ""),
            Path(baselines.__file__ or ""),
        ],
    )


def _run(python: Path, *arguments: str) -> str:
    """Run ``bench.peers`` with another interpreter; its last line of output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [str(python), "-m", "bench.peers", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"exit status {finished.returncode}: {lines[-1][:300]}")
    return (finished.stdout.strip().splitlines() or [""])[-1]

"""Everything that needs a GPU, by one command: builds for it, runs its tests, measures.

Takes less than 9 minutes. Needs the build requirements of ``pyproject.toml``, pytest and nvcc in
the environment, and builds into ``build/gpu``, so that nothing installed is touched. Writes
``bench/results/gpu.json`` and a table: device, driver, commit, what the tests said, and times.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import support

ROOT = Path(__file__).resolve().parents[1]
PREFIX = ROOT / "build" / "gpu"
DEFINES = {
    "LLAVA_FA_CUDA": "ON",
    "LLAVA_FA_CUDA_ARCHITECTURES": "native",
    "LLAVA_FA_CPU_VARIANTS": "baseline;x86-64-v3",
}
# Seconds that each step may take; together less than 9 minutes.
LIMITS = {
    "build": 170,
    "tests": 110,
    "gpu_speed": 100,
    "gpu_compression": 80,
    "gpu_kernels": 25,
    "memcheck": 50,
}
SANITIZER = "compute-sanitizer"


def run(step: str, command: list[str]) -> tuple[int, str, float]:
    """Run one step with the fresh build first on the path; status, output, seconds."""
    paths = [str(PREFIX), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    start = time.perf_counter()
    try:
        finished = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMITS[step],
            check=False,
        )
        status, output = finished.returncode, finished.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        status, output = 124, f"{said}\n{error}"
    print(f"{step}: status {status}\n{output[-3000:]}", flush=True)
    return status, output, time.perf_counter() - start


def build() -> tuple[int, str, float]:
    """Install the package for this machine's GPU into a folder of its own."""
    defines = [f"--config-settings=cmake.define.{name}={value}" for name, value in DEFINES.items()]
    folder = f"--config-settings=build-dir={ROOT / 'build' / 'gpu-objects'}"
    install = ["install", "--no-deps", "--no-build-isolation", "--upgrade", "--target", str(PREFIX)]
    return run("build", [sys.executable, "-m", "pip", *install, *defines, folder, "."])


def tests() -> tuple[int, str, float]:
    """Run the tests of tests/cuda; that all were skipped is a failure."""
    # A test that hangs shows where, well before the step's limit.
    options = ["--maxfail=20", "--tb=short", "-o", "faulthandler_timeout=60"]
    status, output, seconds = run("tests", [sys.executable, "-m", "pytest", *options, "tests/cuda"])
    if status == 0 and not re.search(r"\d+ passed", output):
        status = 1
    return status, output, seconds


def memcheck() -> tuple[str, int, float]:
    """Run the small suite under NVIDIA's memory checker, if there is one; name, status, seconds."""
    if (checker := shutil.which(SANITIZER)) is None:
        return f"memcheck left out: {SANITIZER} is not installed", 0, 0.0
    # Tensors of their own allocations, so that none hides what goes beyond another.
    uncached = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
    check = [checker, "--tool", "memcheck", "--error-exitcode", "9"]
    suite = [sys.executable, "-m", "pytest", "--tb=short", "tests/cuda/test_memory.py"]
    status, output, seconds = run("memcheck", [*uncached, *check, *suite])
    return f"memcheck: {summary(output)}", status, seconds


def answer(command: list[str]) -> str:
    """Return what a program says of the machine or the files, "unknown" if it cannot."""
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() or "unknown"


def summary(output: str) -> str:
    """Return pytest's last line, "12 passed, 1 skipped in 3.4s"."""
    counts = re.compile(r"\d+ (passed|failed|error|skipped)")
    lines = [line for line in output.splitlines() if counts.search(line)]
    return lines[-1].strip("= ") if lines else "did not finish"


def measure(bench: str, *, quick: bool) -> tuple[int, dict[str, Any], float]:
    """Run one bench; status, what it published, seconds."""
    path = ROOT / "build" / f"{bench}.json"
    options = ["--json", str(path), *["--quick"] * quick]
    status, _, seconds = run(bench, [sys.executable, "-m", f"bench.{bench}", *options])
    found = json.loads(path.read_text()) if status == 0 else {}
    found.pop("command", None)
    return status, found, seconds


def main() -> int:
    """Build, test, measure and publish; the status is that of the first step that failed.

    Without a build nothing else runs; a test that fails leaves the other steps their turn.
    """
    arguments = support.parser(__doc__, "gpu").parse_args()
    driver = answer(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    commit = answer(["git", "describe", "--always", "--dirty"])
    steps: list[dict[str, Any]] = []
    tables: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    status, _, seconds = build()
    steps.append({"step": "build", "status": status, "seconds": seconds})
    if status == 0:
        status, output, seconds = tests()
        steps.append({"step": summary(output), "status": status, "seconds": seconds})
        for bench in ("gpu_speed", "gpu_compression", "gpu_kernels"):
            status, found, seconds = measure(bench, quick=arguments.quick)
            steps.append({"step": bench, "status": status, "seconds": seconds})
            tables |= {f"{bench}: {name}": rows for name, rows in found.pop("tables", {}).items()}
            figures |= found
        name, status, seconds = memcheck()
        steps.append({"step": name, "status": status, "seconds": seconds})
    figures |= {"device_and_driver": driver, "commit": commit}
    support.publish("gpu", arguments.json, {"Steps": steps, **tables}, figures)
    return next((step["status"] for step in steps if step["status"] != 0), 0)


if __name__ == "__main__":
    sys.exit(main())

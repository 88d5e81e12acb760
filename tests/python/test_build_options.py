"""The CUDA part from NVIDIA's wheels: what a build asks for, and which nvcc it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

cmake = pytest.importorskip("cmake")
tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("bin/nvcc", "nvvm/bin/cicc", "include/crt/host_config.h", "lib/libcudart_static.a")


def compiler(folder: Path, *options: str, **environment: str) -> str:
    """Return the nvcc and the flags that CMake is told, where Python imports from ``folder``."""
    script = folder / "find.cmake"
    script.write_text(
        "cmake_minimum_required(VERSION 3.24)\n"
        f"set(Python_EXECUTABLE {sys.executable})\n"
        "set(LLAVA_FA_CUDA OFF)\n"
        f"include({ROOT}/cmake/cuda.cmake)\n"
        "llava_fa_find_nvcc_in_wheels()\n"
        'message("$ENV{CUDACXX} $ENV{CUDAFLAGS} ${CMAKE_CUDA_FLAGS}")\n'
    )
    named = ("CUDACXX", "CUDAFLAGS")
    clean = {key: value for key, value in os.environ.items() if key not in named}
    done = subprocess.run(
        [Path(cmake.CMAKE_BIN_DIR) / "cmake", *options, "-P", script],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return " ".join(done.stderr.split())


def wheels(folder: Path, *missing: str) -> Path:
    """Lay out what the wheels install, but for some parts."""
    root = folder / "nvidia" / "cu13"
    for part in PARTS:
        if part not in missing:
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            (root / part).touch()
    return root


def test_nvcc_of_the_wheels_is_taken(tmp_path: Path) -> None:
    root = wheels(tmp_path)
    assert compiler(tmp_path) == f"{root}/bin/nvcc -L{root}/lib"


def test_wheels_that_are_installed_later_are_taken(tmp_path: Path) -> None:
    root = wheels(tmp_path)
    found = compiler(tmp_path, "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND")
    assert found == f"{root}/bin/nvcc -L{root}/lib"


def test_flags_are_kept(tmp_path: Path) -> None:
    root = wheels(tmp_path)
    flags = f"{root}/bin/nvcc -Xfoo -L{root}/lib"
    assert compiler(tmp_path, CUDAFLAGS="-Xfoo") == flags
    assert compiler(tmp_path, "-DCMAKE_CUDA_FLAGS=-Xbar").endswith(f" -Xbar -L{root}/lib")


@pytest.mark.parametrize("missing", PARTS)
def test_incomplete_wheels_are_not(missing: str, tmp_path: Path) -> None:
    root = wheels(tmp_path, missing)
    assert str(root) not in compiler(tmp_path)


def test_a_named_compiler_is_not_replaced(tmp_path: Path) -> None:
    wheels(tmp_path)
    assert compiler(tmp_path, CUDACXX="/opt/nvcc") == "/opt/nvcc"
    assert compiler(tmp_path, "-DCMAKE_CUDA_COMPILER=/opt/nvcc") == ""


def test_the_extra_is_what_an_isolated_build_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (override,) = project["tool"]["scikit-build"]["overrides"]
    assert override["if"] == {"env": {"LLAVA_FA_CUDA_WHEELS": True}}
    extra = project["project"]["optional-dependencies"]["cuda-toolkit"]
    assert override["build"]["requires"] == extra

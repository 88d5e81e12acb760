"""The C interface from C and through ctypes: the examples, on a compressed checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import llava_fa
from llava_fa import CompressedMatrix

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(llava_fa.__file__).parent / "libllava_fa.so"
EXAMPLES = ROOT / "examples" / "c_api"


@pytest.fixture(scope="module")
def matrix_file(packed_folder: Path) -> tuple[Path, str, np.ndarray]:
    """A file, a module in it, and the product of its matrix with ones."""
    path = next(packed_folder.glob("*.safetensors"))
    with safe_open(path, "pt") as file:
        module = next(name for name in sorted(file.keys()) if name.endswith(".codes"))[:-6]
        tensors = {
            name.rpartition(".")[2]: file.get_tensor(name)
            for name in sorted(file.keys())
            if name.rpartition(".")[0] == module
        }
    matrix = CompressedMatrix.from_state_dict(tensors)
    return path, module, matrix.matmul(np.ones(matrix.shape[1], dtype=np.float32))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in C, built as strict C11 against the library of this package."""
    output = tmp_path_factory.mktemp("c") / "multiply"
    compiler = os.environ.get("CC", "cc")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'cpp' / 'include'}"]
    link = [str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}", "-o", str(output)]
    subprocess.run([compiler, *flags, str(EXAMPLES / "multiply.c"), *link], check=True)
    return output


def printed(*command: str | Path) -> np.ndarray:
    finished = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return np.array(finished.stdout.split(), dtype=np.float32)


def test_example_in_c(program: Path, matrix_file: tuple[Path, str, np.ndarray]) -> None:
    path, module, expected = matrix_file
    assert np.array_equal(printed(program, path, module), expected)


def test_example_through_ctypes(matrix_file: tuple[Path, str, np.ndarray]) -> None:
    path, module, expected = matrix_file
    found = printed(sys.executable, EXAMPLES / "multiply.py", LIBRARY, path, module)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("module", "message"), [("no.such.module", "header"), ("x" * 600, "header")]
)
def test_example_in_c_without_such_a_module(
    program: Path, matrix_file: tuple[Path, str, np.ndarray], module: str, message: str
) -> None:
    command = [str(program), str(matrix_file[0]), module]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert message in finished.stderr


def test_example_in_c_on_what_is_no_checkpoint(program: Path, tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 8, b"\x10\x00\x00\x00\x00\x00\x00\x00{}"):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        finished = subprocess.run(
            [str(program), str(path), "m"], capture_output=True, text=True, check=False
        )
        assert finished.returncode == 1

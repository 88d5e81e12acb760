"""Multiplies a vector of ones with one matrix of a compressed checkpoint, through the C interface.

    python multiply.py libllava_fa.so small/model.safetensors MODULE

Prints the outputs, one per line. It shows how any language with a foreign-function interface uses
the library; from Python itself, ``llava_fa.CompressedMatrix`` is the shorter way.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p

import numpy as np
from safetensors import safe_open

COPY, SINGLE = 0, 0


class Tensor(ctypes.Structure):
    """``llava_fa_tensor``."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("bytes", c_size_t))


def load_library(path: str) -> ctypes.CDLL:
    """Open the library and declare what is used of ``llava_fa.h``."""
    library = ctypes.CDLL(path)
    library.llava_fa_last_error.restype = c_char_p
    library.llava_fa_matrix_open.argtypes = (POINTER(Tensor), c_size_t, c_int, POINTER(c_void_p))
    library.llava_fa_matrix_close.argtypes = (c_void_p,)
    library.llava_fa_matrix_close.restype = None
    for name in ("rows", "columns"):
        size = getattr(library, f"llava_fa_matrix_{name}")
        size.argtypes, size.restype = (c_void_p,), c_int64
    floats = POINTER(c_float)
    library.llava_fa_matrix_multiply.argtypes = (
        *(c_void_p, floats, c_size_t, c_size_t),
        *(c_int, floats, c_size_t),
    )
    return library


def check(library: ctypes.CDLL, status: int) -> None:
    """Raise what the library complains of."""
    if status != 0:
        raise RuntimeError(library.llava_fa_last_error().decode())


def open_matrix(library: ctypes.CDLL, path: str, module: str) -> c_void_p:
    """Open a module's matrix; the library copies the tensors."""
    with safe_open(path, "numpy") as file:
        names = [name for name in sorted(file.keys()) if name.rpartition(".")[0] == module]
        arrays = {
            name.rpartition(".")[2]: np.ascontiguousarray(file.get_tensor(name)) for name in names
        }
    tensors = (Tensor * len(arrays))()
    for tensor, (name, array) in zip(tensors, arrays.items(), strict=True):
        tensor.name, tensor.data, tensor.bytes = name.encode(), array.ctypes.data, array.nbytes
    matrix = c_void_p()
    check(library, library.llava_fa_matrix_open(tensors, len(arrays), COPY, byref(matrix)))
    return matrix


def main() -> None:
    """Print the product."""
    library = load_library(sys.argv[1])
    matrix = open_matrix(library, sys.argv[2], sys.argv[3])
    rows = library.llava_fa_matrix_rows(matrix)
    columns = library.llava_fa_matrix_columns(matrix)
    x, y = (c_float * columns)(*[1.0] * columns), (c_float * rows)()
    status = library.llava_fa_matrix_multiply(matrix, x, columns, 1, SINGLE, y, rows)
    check(library, status)
    library.llava_fa_matrix_close(matrix)
    print("\n".join(f"{value:.9g}" for value in y))


if __name__ == "__main__":
    main()

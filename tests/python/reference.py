"""Slow, clear float64 references for the matrix-level tests."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]

TRELLIS = 3
"""Codec id in the header."""


def parseval_weights(output_channels: int) -> Float:
    weights = np.full(output_channels // 2 + 1, np.sqrt(2.0))
    weights[0] = 1.0
    if output_channels % 2 == 0:
        weights[-1] = 1.0
    return weights


def half_spectrum(weight: npt.NDArray[np.floating]) -> Complex:
    """The definition through NumPy's full two-dimensional transform."""
    m = weight.shape[0]
    full = np.fft.fft2(weight.astype(np.float64), norm="ortho")
    return np.asarray(full[: m // 2 + 1] * parseval_weights(m)[:, None])


def splitmix_signs(seed: int, stream: int, count: int) -> Float:
    """Random signs exactly as docs/format.md states them, in Python integers."""
    mask = 2**64 - 1
    signs = np.empty(count)
    for j in range(count):
        z = (seed + 0x9E3779B97F4A7C15 * (2 * j + stream + 1)) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        signs[j] = -1.0 if z >> 63 else 1.0
    return signs


def unpack_bits(row: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.int64]:
    """Little-endian bit stream to integers, one bit at a time."""
    stream = np.unpackbits(row, bitorder="little").astype(np.int64)
    return np.array(
        [int(stream[i * bits : (i + 1) * bits] @ (1 << np.arange(bits))) for i in range(count)]
    )


def row_bytes(packed: npt.NDArray[np.uint8], row: int) -> npt.NDArray[np.uint8]:
    """Bytes of one row of (rows, width) packed codes, which lie in panels of 64 rows."""
    rows, width = packed.shape
    first = row // 64 * 64
    panel = np.ravel(packed)[first * width : min(first + 64, rows) * width]
    return panel.reshape(width, -1)[:, row - first]


def unpack_codes(packed: npt.NDArray[np.uint8], length: int, bits: int) -> npt.NDArray[np.int64]:
    """All codes of a matrix, (rows, length)."""
    return np.stack([unpack_bits(row_bytes(packed, k), length, bits) for k in range(len(packed))])


def points(rings: list[tuple[float, int, float]]) -> Complex:
    """All code points of a constellation in code order.

    Two of them, which their phases tell, come part after part of a turn.
    """
    parts = [
        radius * np.exp(2j * np.pi * (np.arange(phases) + offset) / phases)
        for radius, phases, offset in rings
    ]
    counts = [phases for _, phases, _ in rings]
    turns = 4 if counts == [4, 12, 16, 16, 16] else 2 if counts == 16 * [16] else 1
    return np.concatenate([part.reshape(turns, -1) for part in parts], axis=1).reshape(-1)


FORMAT = Path(__file__).resolve().parents[2] / "docs" / "format.md"


def trellis_tables(code_bits: int) -> tuple[list[int], list[int], list[int], int]:
    """Columns, coarse and fine levels and the shift of one code size, from docs/format.md."""
    text = FORMAT.read_text(encoding="utf-8").split("<!-- end of trellis -->")[0]
    row = text.split(f"**`trellis`, {code_bits} bits**")[1].split("**`")[0]
    cells = dict(re.findall(r"^- (\w+): (.*)$", row, re.M))
    levels = {name: [int(x) for x in cells[name].split()] for name in ("coarse", "fine", "shift")}
    columns = [int(x, 16) for x in cells["columns"].split()]
    return columns, levels["coarse"], levels["fine"], levels["shift"][0]


def trellis_points(code_bits: int, state_bits: int) -> Complex:
    """The point of every trellis state by the rule of docs/format.md."""
    columns, coarse, fine, shift = trellis_tables(code_bits)
    states = np.arange(2**state_bits)
    index = np.zeros_like(states)
    for bit in range(state_bits):
        index ^= (states >> bit & 1) * columns[bit]
    nibble = [index >> (4 * i) & 15 for i in range(4)]
    real, imag = (
        np.take(coarse, nibble[part]) / 32 + np.take(fine, nibble[part + 2]) / (32 << shift)
        for part in (0, 1)
    )
    return np.asarray(real + 1j * imag)


def trellis_column_order(n: int) -> list[int]:
    """Columns in the order of their stored codes: each next to its mirror image."""
    order: list[int] = []
    for column in range(1, (n + 1) // 2):
        order += [column, n - column]
    return [*order, 0] if n % 2 else [*order, 0, n // 2]


def trellis_codes(stored: npt.NDArray[np.int64], code_bits: int) -> npt.NDArray[np.int64]:
    """The codes that states are made of, column by column.

    Of 8 bits, their own coarse indices are stored.
    """
    order = trellis_column_order(stored.shape[1])
    values = np.empty_like(stored)
    values[:, order] = stored
    if code_bits < 8:
        return values
    columns = trellis_tables(8)[0]
    codes = np.arange(256)
    coarse = np.zeros_like(codes)
    for bit in range(8):
        coarse ^= (codes >> bit & 1) * (columns[bit] & 255)
    return np.argsort(coarse)[values]


def trellis_entries(
    stored: npt.NDArray[np.int64], code_bits: int, requested_state_bits: int
) -> Complex:
    """Points of a (h, n) matrix of stored trellis codes, state by state."""
    codes = trellis_codes(stored, code_bits)
    h = len(codes)
    state_bits = requested_state_bits
    if h < 4 * requested_state_bits:
        state_bits = min(max(h * code_bits // 4, code_bits), requested_state_bits)
    table = trellis_points(code_bits, state_bits)
    segments = max(1, h // 256)
    out = np.empty(codes.shape, dtype=np.complex128)
    for s in range(segments):
        begin, end = 256 * s, h if s + 1 == segments else 256 * (s + 1)
        for k in range(begin, end):
            state = np.zeros(codes.shape[1], dtype=np.int64)
            for back in range(-(-state_bits // code_bits)):
                row = begin + (k - begin - back) % (end - begin)
                state |= codes[row] << (back * code_bits)
            out[k] = table[state & (2**state_bits - 1)]
    return out


def decode(tensors: dict[str, npt.NDArray[np.generic]], rings: dict[int, Complex]) -> Float:
    """The dense weight from stored tensors alone, following docs/format.md step by step.

    ``rings`` maps code bits to the points of the matrix's codec; factors always use ring points,
    passed under the key ``-factor_bits``.
    """
    _, m, n, code_bits, codec, rank, factor_bits, flags, seed, state_bits = (
        int(x) for x in tensors["header"]
    )
    h = m // 2 + 1

    def rows(name: str, scale: str, count: int, length: int, bits: int, table: Complex) -> Complex:
        out = np.empty((count, length), dtype=np.complex128)
        codes = unpack_codes(np.asarray(tensors[name], dtype=np.uint8), length, bits)
        for k in range(count):
            out[k] = float(tensors[scale][k]) * table[codes[k]]
        return out

    if codec == TRELLIS:
        packed = np.asarray(tensors["codes"], dtype=np.uint8)
        codes = unpack_codes(packed, n, code_bits)
        scale = tensors["row_scale"].astype(np.float64)
        spectrum = scale[:, None] * trellis_entries(codes, code_bits, state_bits)
    else:
        spectrum = rows("codes", "row_scale", h, n, code_bits, rings[code_bits])
    if rank:
        if factor_bits == 16:
            pairs = {
                side: tensors[f"low_rank_{side}"].astype(np.float64) for side in ("left", "right")
            }
            left, right = (pairs[s][..., 0] + 1j * pairs[s][..., 1] for s in ("left", "right"))
        else:
            left, right = (
                rows(
                    f"low_rank_{s}",
                    f"low_rank_{s}_scale",
                    rank,
                    length,
                    factor_bits,
                    rings[-factor_bits],
                )
                for s, length in (("left", h), ("right", n))
            )
        spectrum = spectrum + left.T @ right
    spectrum /= parseval_weights(m)[:, None]
    columns = np.fft.ifft(spectrum, axis=1, norm="ortho")
    dense = np.fft.irfft(columns, n=m, axis=0, norm="ortho")
    row_factor, col_factor = np.ones(m), np.ones(n)
    if flags & 1:
        row_factor, col_factor = splitmix_signs(seed, 1, m), splitmix_signs(seed, 0, n)
    if flags & 2:
        col_factor = col_factor * tensors["channel_scale_in"].astype(np.float64)
    if flags & 4:
        row_factor = row_factor * tensors["channel_scale_out"].astype(np.float64)
    return np.asarray(float(tensors["matrix_scale"][0]) * row_factor[:, None] * dense * col_factor)

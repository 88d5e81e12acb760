"""Reads amounts of bytes as people write them: ``5GB``."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(name: str, size: int | str) -> int:
    """Return the bytes of ``size``, a positive integer or text like ``"5GB"``.

    Raises
    ------
    ValueError
        It is neither; the message calls the option ``name``.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", str(size).upper())
    value = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if value < 1:
        raise ValueError(f"{name} must be bytes or like '5GB', got {size!r}")
    return value

"""What a stored matrix consists of: the fields that determine all its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from . import _core
from .errors import FormatError

_DTYPES: dict[str, torch.dtype] = {
    "uint8": torch.uint8,
    "int64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclasses.dataclass(frozen=True)
class MatrixSpec:
    """Everything static about one stored matrix; determines each of its tensors.

    Parameters
    ----------
    shape
        ``(output channels m, input channels n)``.
    codec, code_bits
        Constellation and bits per complex entry (twice the bits per weight).
    rank, factor_bits
        Complex rank of the low-rank part and bits per complex entry of its factors (16: float16).
    signs, seed
        Whether random signs were applied, and their seed.
    channel_scale_in, channel_scale_out
        Whether input (n) and output (m) channel scales are stored.
    state_bits
        Bits of a trellis state, 8 to 16; 0 for other codecs.
    """

    shape: tuple[int, int]
    codec: str
    code_bits: int
    rank: int
    factor_bits: int
    signs: bool
    seed: int
    channel_scale_in: bool
    channel_scale_out: bool
    state_bits: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MatrixSpec:
        """Inverse of :meth:`to_dict`; raises :class:`FormatError` on anything else."""
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != expected:
            raise FormatError(
                f"a matrix specification has fields {sorted(fields)}, expected {sorted(expected)}"
            )
        try:
            spec = cls(**{**fields, "shape": tuple(fields["shape"])})
            _core.tensor_layout(vars(spec))
        except (TypeError, ValueError, RuntimeError) as error:
            raise FormatError(
                f"inconsistent matrix specification {dict(fields)}: {error}"
            ) from error
        return spec

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return suffix → (dtype, shape) of exactly the tensors that are stored, in file order."""
        return dict(_layout(self))

    @property
    def nbytes(self) -> int:
        """Stored bytes: codes, scales, factors, header and padding."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            for dtype, shape in self.tensors().values()
        )


# The layers of a model are of few shapes, and loading asks several times for each.
@lru_cache(maxsize=256)
def _layout(spec: MatrixSpec) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    layout = _core.tensor_layout(vars(spec))
    return {name: (_DTYPES[dtype], tuple(shape)) for name, dtype, shape in layout}

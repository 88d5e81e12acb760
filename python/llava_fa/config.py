"""How a matrix is compressed: the one place where options and their defaults are defined."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

CODECS = ("ring", "product", "uniform", "trellis")
ROW_SCALES = ("auto", "least-squares", "unbiased")
ODC_KINDS = ("spatial", "spectral", "none")
CALIBRATION_KINDS = ("hessian", "diagonal")
FACTOR_BITS_FLOAT16 = 16
MAX_TRELLIS_BITS = 4


@dataclasses.dataclass(frozen=True)
class CompressionConfig:
    """Options of the compression of one matrix, or of all matrices of a checkpoint.

    Parameters
    ----------
    bits
        Code bits per weight, 1 to 5 in steps of one half. A complex entry of the half spectrum
        stands for two weights, so it gets ``2 * bits`` bits.
    codec
        ``"trellis"`` (codes of a column depend on each other; the most accurate, up to 4 bits),
        ``"ring"`` (unrestricted polar constellation, the best without memory), ``"product"``
        (Lloyd-Max magnitude times uniform phase) or ``"uniform"`` (the paper's PolarQuant).
    rank
        Complex rank of the low-rank part; 0 for none.
    factor_bits
        Bits per complex entry of the low-rank factors, 1 to 10, or 16 for float16 pairs.
    odc
        Optional diagonal calibration: ``"spatial"`` (channel scales before the transform),
        ``"spectral"`` (the paper's weights of the low-rank step) or ``"none"``.
    signs
        Seeded random signs of input and output channels before the transform. They make the
        spectrum incoherent whatever the weights; ``False`` is the paper's plain transform.
    max_alternations
        Upper bound on alternations between low rank and codes (1 is the sequential method).
    seed
        Seed of the signs and of the randomized decomposition, 0 to 2**63 - 1.
    calibration
        What data are used for, if there are any: ``"hessian"`` (the full second moment E[x xᵀ] of
        a layer's input, for error feedback) or ``"diagonal"`` (its mean squares, for ODC alone).
    state_bits
        Bits of a trellis state, 8 to 16: every further one costs twice the time of encoding and
        comes closer to the Shannon bound.
    row_scale
        ``"least-squares"`` gives a matrix its least squared error, with codes that are
        systematically too small (by 11 % at 2 bits); ``"unbiased"`` enlarges them until they are
        not, which costs squared error but serves a model, where the shrinkage would multiply from
        layer to layer. ``"auto"``: least squares for a single matrix, unbiased in a checkpoint.

    Raises
    ------
    TypeError, ValueError
        If an option has the wrong type or lies outside its range.

    Examples
    --------
    >>> from llava_fa import CompressionConfig
    >>> config = CompressionConfig(bits=3, rank=16)
    >>> config.code_bits
    6
    >>> CompressionConfig.from_json(config.to_json()) == config
    True
    """

    bits: float = 4.0
    codec: str = "ring"
    rank: int = 0
    factor_bits: int = 8
    odc: str = "spatial"
    signs: bool = True
    max_alternations: int = 10
    seed: int = 0
    calibration: str = "hessian"
    state_bits: int = 12
    row_scale: str = "auto"

    def __post_init__(self) -> None:
        """Validate every field."""
        object.__setattr__(self, "bits", _checked_bits(self.bits))
        _check_choice("codec", self.codec, CODECS)
        if self.codec == "trellis" and self.bits > MAX_TRELLIS_BITS:
            raise ValueError(f"bits is {self.bits}, expected at most 4 for the trellis")
        _check_choice("odc", self.odc, ODC_KINDS)
        _check_choice("calibration", self.calibration, CALIBRATION_KINDS)
        _check_integer("state_bits", self.state_bits, 8, 16)
        _check_choice("row_scale", self.row_scale, ROW_SCALES)
        _check_integer("rank", self.rank, 0, 2**28)
        _check_integer("max_alternations", self.max_alternations, 1, 1000)
        _check_integer("seed", self.seed, 0, 2**63 - 1)
        if self.factor_bits != FACTOR_BITS_FLOAT16:
            _check_integer("factor_bits", self.factor_bits, 1, 10, "1 to 10, or 16")
        if not isinstance(self.signs, bool):
            raise TypeError(f"signs is {self.signs!r}, expected True or False")

    @property
    def code_bits(self) -> int:
        """Bits per complex entry of the half spectrum."""
        return int(2 * self.bits)

    @property
    def stored_state_bits(self) -> int:
        """Bits of a trellis state as a matrix states them: 0 for codecs without memory."""
        return self.state_bits if self.codec == "trellis" else 0

    def for_checkpoint(self) -> CompressionConfig:
        """Return the options with ``row_scale="auto"`` decided for a matrix of a model."""
        return self.replace(row_scale="unbiased") if self.row_scale == "auto" else self

    def replace(self, **overrides: Any) -> CompressionConfig:
        """Return a copy with some options changed; unknown names raise ``ValueError``."""
        return CompressionConfig.from_dict({**self.to_dict(), **overrides})

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> CompressionConfig:
        """Build from a mapping; missing options take defaults, unknown ones are refused."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"unknown options {unknown}, expected some of {sorted(known)}")
        return cls(**options)

    def to_json(self) -> str:
        """Return the options as a JSON object with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> CompressionConfig:
        """Inverse of :meth:`to_json`."""
        options = json.loads(text)
        if not isinstance(options, dict):
            raise ValueError(f"expected a JSON object, received {type(options).__name__}")
        return cls.from_dict(options)


def _checked_bits(bits: float) -> float:
    if isinstance(bits, bool) or not isinstance(bits, (int, float)):
        raise TypeError(f"bits is {bits!r}, expected a number")
    if not math.isfinite(bits) or 2 * bits != int(2 * bits) or not 1 <= bits <= 5:
        raise ValueError(f"bits is {bits}, expected 1 to 5 in steps of one half")
    return float(bits)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, expected one of {choices}")
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {choices}")


def _check_integer(name: str, value: int, low: int, high: int, expected: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {expected or f'{low} to {high}'}")

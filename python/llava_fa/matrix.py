"""Matrix level: one weight to its compressed form and back, and the stages between as functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from llava_fa import _core
from llava_fa.config import CompressionConfig
from llava_fa.errors import FormatError

Array: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
ArrayT = TypeVar("ArrayT", npt.NDArray[Any], torch.Tensor)

FORMAT_VERSION: int = _core.FORMAT_VERSION

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
        return {**dataclasses.asdict(self), "shape": list(self.shape)}

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
            _core.tensor_layout(dataclasses.asdict(spec))
        except (TypeError, ValueError, RuntimeError) as error:
            raise FormatError(
                f"inconsistent matrix specification {dict(fields)}: {error}"
            ) from error
        return spec

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return suffix → (dtype, shape) of exactly the tensors that are stored, in file order."""
        layout = _core.tensor_layout(dataclasses.asdict(self))
        return {name: (_DTYPES[dtype], tuple(shape)) for name, dtype, shape in layout}

    @property
    def nbytes(self) -> int:
        """Stored bytes: codes, scales, factors, header and padding."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            for dtype, shape in self.tensors().values()
        )


class CompressedMatrix:
    """A compressed weight matrix W of shape (m, n), used as ``y = x Wᵀ``.

    Made by :func:`compress_matrix` or :meth:`from_state_dict`. Arrays come back in the kind that
    went in: NumPy for NumPy, torch for torch.

    Attributes
    ----------
    spec : MatrixSpec
        What is stored.
    objective : tuple of float
        Weighted squared error after each accepted alternation, relative to the spectrum's energy;
        the first entry is the sequential solution. Empty for a loaded matrix.
    """

    def __init__(
        self, packed: _core.PackedMatrix, *, as_torch: bool, objective: tuple[float, ...] = ()
    ) -> None:
        self._packed = packed
        self._as_torch = as_torch
        self.objective = objective
        spec = packed.spec()
        self.spec = MatrixSpec(**{**spec, "shape": tuple(spec["shape"])})

    @property
    def shape(self) -> tuple[int, int]:
        """``(output channels, input channels)``."""
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        """All stored bytes."""
        return int(self._packed.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """All stored bits divided by the number of weights."""
        return 8.0 * self.nbytes / (self.shape[0] * self.shape[1])

    def dense(self) -> Any:
        """Return the decoded weight, (m, n) float32."""
        return _as_kind(self._packed.dense(), self._as_torch)

    def code_planes(self) -> Any:
        """Return what the codes decode to in the half spectrum, (2, m // 2 + 1, n) float32.

        Real and imaginary plane of row scale times point, without the low-rank part and
        ``matrix_scale``.
        """
        return _as_kind(self._packed.code_planes(), self._as_torch)

    def matmul(self, x: ArrayT) -> ArrayT:
        """Return ``x Wᵀ`` without forming the dense weight.

        Parameters
        ----------
        x
            (..., n); any supported dtype. Computation and result are float32.
        """
        source = _exportable(x)
        if source.ndim == 0 or source.shape[-1] != self.shape[1]:
            raise ValueError(
                f"activations have shape {tuple(source.shape)}, expected (..., {self.shape[1]})"
            )
        leading = tuple(source.shape[:-1])
        product: Any = self._packed.matmul(source.reshape(-1, self.shape[1]))
        result: ArrayT = _as_kind(product.reshape(*leading, self.shape[0]), _is_torch(x))
        return result

    def relative_error(self, weight: Array) -> float:
        """Return ``||weight - dense||² / ||weight||²`` (Frobenius); 0 for an exact zero matrix."""
        reference = _to_float64(weight)
        if reference.shape != self.shape:
            raise ValueError(f"weight has shape {reference.shape}, expected {self.shape}")
        energy = float(np.sum(np.square(reference)))
        reference -= cast(npt.NDArray[np.float32], self._packed.dense())
        error = float(np.sum(np.square(reference)))
        return error / energy if energy > 0 else error

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the stored tensors under the suffixes of ``docs/format.md``."""
        return {name: torch.from_numpy(value) for name, value in self._packed.tensors().items()}

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Array]) -> CompressedMatrix:
        """Build from stored tensors, checking all of them.

        Raises
        ------
        FormatError
            If a tensor is missing, has another dtype or shape than the header implies, or holds
            values that no encoder writes.
        """
        arrays = {name: _stored_array(name, value) for name, value in tensors.items()}
        flat = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}
        packed = _core.PackedMatrix.from_tensors(flat)
        matrix = cls(packed, as_torch=any(_is_torch(value) for value in tensors.values()))
        for name, (dtype, shape) in matrix.spec.tensors().items():
            found = torch.from_numpy(arrays[name])
            if found.dtype != dtype or tuple(found.shape) != shape:
                raise FormatError(
                    f'tensor "{name}" is {found.dtype} of shape {tuple(found.shape)}, '
                    f"expected {dtype} of shape {shape}"
                )
        return matrix

    def __repr__(self) -> str:
        return f"CompressedMatrix({self.spec!r}, bits_per_weight={self.bits_per_weight:.3f})"


def compress_matrix(
    weight: Array,
    config: CompressionConfig | None = None,
    *,
    input_second_moment: Array | None = None,
    output_second_moment: Array | None = None,
) -> CompressedMatrix:
    """Compress one weight matrix.

    Parameters
    ----------
    weight
        (m, n) = (output, input channels), NumPy array or torch CPU tensor of float16, bfloat16,
        float32 or float64, contiguous or not.
    config
        Options; the default is ``CompressionConfig(bits=3)``.
    input_second_moment
        (n,) mean squares E[x_j²] of the inputs, for ODC alone; or the full (n, n) matrix E[x xᵀ]:
        then codes are found with error feedback, unless ``config.calibration == "diagonal"``.
    output_second_moment
        (m,) mean squared output gradients.

    Raises
    ------
    NonFiniteError
        If the weight or a moment holds NaN or infinity.
    ValueError, TypeError
        If shapes, dtypes or options do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from llava_fa import CompressionConfig, compress_matrix
    >>> weight = np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32)
    >>> matrix = compress_matrix(weight, CompressionConfig(bits=4))
    >>> round(matrix.bits_per_weight, 1)
    4.1
    >>> matrix.relative_error(weight) < 0.01
    True
    """
    config = CompressionConfig(bits=3) if config is None else config
    packed, objective = _core.compress_matrix(
        _exportable(weight),
        codec=config.codec,
        code_bits=config.code_bits,
        rank=config.rank,
        factor_bits=config.factor_bits,
        odc=config.odc,
        signs=config.signs,
        max_alternations=config.max_alternations,
        seed=config.seed,
        state_bits=config.state_bits,
        unbiased=config.row_scale == "unbiased",
        feedback=config.calibration == "hessian",
        input_second_moment=_optional(input_second_moment),
        output_second_moment=_optional(output_second_moment),
    )
    return CompressedMatrix(packed, as_torch=_is_torch(weight), objective=tuple(objective))


def half_spectrum(weight: ArrayT) -> ArrayT:
    """Return the half spectrum of an (m, n) weight, (m // 2 + 1, n) complex64.

    ``Ã[k] = ω_k (F_m W F_nᵀ)[k]`` with unitary DFTs and Parseval weights ω = √2, but 1 for k = 0
    and, for even m, k = m/2; then ``||Ã|| = ||W||``.
    """
    result: ArrayT = _as_kind(_core.half_spectrum(_exportable(weight)), _is_torch(weight))
    return result


def inverse_half_spectrum(spectrum: ArrayT, output_channels: int) -> ArrayT:
    """Return the real (m, n) float32 matrix of a half spectrum; ``output_channels`` is m."""
    dense = _core.inverse_half_spectrum(_exportable(spectrum), output_channels)
    result: ArrayT = _as_kind(dense, _is_torch(spectrum))
    return result


def truncated_svd(
    matrix: ArrayT,
    rank: int,
    *,
    power_iterations: int = 2,
    oversampling: int | None = None,
    seed: int = 0,
    exact: bool = False,
    warm_start: ArrayT | None = None,
) -> tuple[ArrayT, ArrayT, ArrayT]:
    """Return ``(U, s, Vh)`` with ``matrix ≈ U diag(s) Vh``, U (rows, rank), Vh (rank, cols).

    Randomized block subspace iteration, or with ``exact`` the full decomposition. A ``warm_start``
    of right vectors (rank', cols) replaces the random block. The default ``oversampling`` brings
    the squared error within 1 % of the optimum even for flat spectra.
    """
    parts = _core.truncated_svd(
        _exportable(matrix),
        rank,
        power_iterations,
        _core.default_oversampling(rank) if oversampling is None else oversampling,
        seed,
        exact,
        None if warm_start is None else _exportable(warm_start),
    )
    left, values, right = (_as_kind(part, _is_torch(matrix)) for part in parts)
    return left, values, right


def polar_encode(
    values: ArrayT,
    code_bits: int,
    codec: str = "ring",
    *,
    state_bits: int = CompressionConfig.state_bits,
) -> tuple[ArrayT, ArrayT]:
    """Return packed codes, (rows, ceil(cols · code_bits / 8)) uint8, and row scales, float16.

    ``state_bits`` is the trellis' and ignored otherwise.
    """
    parts = _core.polar_encode(_exportable(values), codec, code_bits, state_bits)
    codes, row_scale = (_as_kind(part, _is_torch(values)) for part in parts)
    return codes, row_scale


def polar_decode(
    codes: ArrayT,
    row_scale: ArrayT,
    cols: int,
    code_bits: int,
    codec: str = "ring",
    *,
    state_bits: int = CompressionConfig.state_bits,
) -> ArrayT:
    """Inverse of :func:`polar_encode`: (rows, cols) complex64."""
    packed = np.ascontiguousarray(_to_numpy(codes), dtype=np.uint8)
    scale = np.ascontiguousarray(_to_numpy(row_scale), dtype=np.float16).view(np.uint16)
    values = _core.polar_decode(packed, scale, cols, codec, code_bits, state_bits)
    result: ArrayT = _as_kind(values, _is_torch(codes))
    return result


def diagonal_scales(
    weight: ArrayT,
    input_second_moment: Array | None = None,
    output_second_moment: Array | None = None,
) -> tuple[ArrayT | None, ArrayT | None]:
    """Return the spatial ODC scales, in (n,) and out (m,); None where not worth their bits.

    ``W = diag(out) W̄ diag(in)`` with W̄ the matrix that is transformed and coded.
    """
    parts = _core.diagonal_scales(
        _exportable(weight), _optional(input_second_moment), _optional(output_second_moment)
    )
    scale_in, scale_out = (
        None if part is None else _as_kind(part, _is_torch(weight)) for part in parts
    )
    return scale_in, scale_out


def constellation(codec: str, code_bits: int) -> dict[str, Any]:
    """Return the rings ``(radius, phases, phase offset)`` of a codec and its design distortion."""
    described: dict[str, Any] = _core.constellation(codec, code_bits)
    return described


def _is_torch(array: object) -> bool:
    return isinstance(array, torch.Tensor)


def _exportable(array: Any) -> Any:
    """Detach torch tensors and resolve lazy conjugation, so that DLPack can export them."""
    if isinstance(array, torch.Tensor):
        if array.device.type != "cpu":
            raise ValueError(f"tensor is on {array.device}, expected the CPU: call .cpu() first")
        return array.detach().resolve_conj().resolve_neg()
    if isinstance(array, np.ndarray):
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    raise TypeError(f"expected a NumPy array or a torch tensor, received {type(array).__name__}")


def _optional(array: Array | None) -> Any:
    return None if array is None else _exportable(array)


def _as_kind(array: Any, as_torch: bool) -> Any:
    return torch.from_numpy(array) if as_torch else array


def _to_numpy(array: Array) -> npt.NDArray[Any]:
    exported = _exportable(array)
    return exported.numpy() if isinstance(exported, torch.Tensor) else exported


def _to_float64(array: Array) -> npt.NDArray[np.float64]:
    exported = _exportable(array)
    if isinstance(exported, torch.Tensor):
        return exported.to(torch.float64, copy=True).numpy()
    return np.array(exported, dtype=np.float64)


def _stored_array(name: str, array: Array) -> npt.NDArray[Any]:
    try:
        return np.ascontiguousarray(_to_numpy(array))
    except TypeError as error:
        raise FormatError(f'tensor "{name}": {error}') from error

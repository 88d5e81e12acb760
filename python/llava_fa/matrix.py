"""Matrix level: one weight to its compressed form and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from . import _core
from .arrays import (
    Array,
    ArrayT,
    as_kind,
    dtype_name,
    exportable,
    exportable_or_none,
    is_on_gpu,
    is_torch,
    to_float64,
    to_numpy,
)
from .config import CompressionConfig
from .errors import FormatError
from .matrix_spec import MatrixSpec

Precision = Literal["single", "half"]


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

    def dense(self, *, device: str | torch.device | None = None) -> Any:
        """Return the decoded weight, (m, n) float32.

        Parameters
        ----------
        device
            An NVIDIA GPU, which decodes, or ``"cpu"``: then the result is a torch tensor there. By
            default it is on the CPU, and of the kind that was compressed.

        Raises
        ------
        ValueError
            It is neither the CPU nor an NVIDIA GPU of this machine.
        DeviceError, DeviceMemoryError
            It cannot be used, or its memory is too full.
        """
        if device is None:
            return as_kind(self._packed.dense(), self._as_torch)
        from .device_compression import compression_device
        from .device_stages import dense

        chosen = compression_device(device)
        if chosen.type == "cpu":
            return torch.from_numpy(self._packed.dense())
        return dense(self._packed, self.spec, self.state_dict()["codes"], chosen)

    def code_planes(self) -> Any:
        """Return what the codes decode to in the half spectrum, (2, m // 2 + 1, n) float32.

        Real and imaginary plane of row scale times point, without the low-rank part and
        ``matrix_scale``.
        """
        return as_kind(self._packed.code_planes(), self._as_torch)

    def matmul(self, x: ArrayT, *, precision: Precision = "single") -> ArrayT:
        """Return ``x Wᵀ`` without forming the dense weight.

        Parameters
        ----------
        x
            (..., n); any supported dtype. The result is float32.
        precision
            ``"single"`` agrees with the product with ``dense()`` to 10⁻⁵; ``"half"`` to 10⁻³, no
            more than rounding to bfloat16 changes, and is faster for a few activations.

        Raises
        ------
        ValueError
            The width is another, or there is no such precision.
        """
        if precision not in get_args(Precision):
            raise ValueError(f'precision is {precision!r}, expected "single" or "half"')
        source = exportable(x)
        if source.ndim == 0 or source.shape[-1] != self.shape[1]:
            raise ValueError(
                f"activations have shape {tuple(source.shape)}, expected (..., {self.shape[1]})"
            )
        leading = tuple(source.shape[:-1])
        product: Any = self._packed.matmul(source.reshape(-1, self.shape[1]), precision == "half")
        result: ArrayT = as_kind(product.reshape(*leading, self.shape[0]), is_torch(x))
        return result

    def multiply(self, x: torch.Tensor, dtype: torch.dtype, *, half: bool) -> torch.Tensor:
        """Return ``x Wᵀ``, rounded once to ``dtype``: what :meth:`matmul` does, with less ado.

        Parameters
        ----------
        x
            (..., n) of float32, bfloat16 or float16, on the CPU.
        dtype
            One of these.
        half
            Whether to multiply at half precision; x of bfloat16 then as ``Precision::bfloat16``.

        Raises
        ------
        ValueError
            x has another width or is elsewhere.
        TypeError
            A dtype is another.
        """
        rows, cols = self.spec.shape
        shape = x.shape
        if not x.is_cpu or shape[-1:] != (cols,):  # a single number has no width
            raise ValueError(
                f"activations have shape {tuple(shape)} on {x.device}, expected (..., {cols}) on "
                "the CPU"
            )
        plain = x.resolve_neg().contiguous()
        out = torch.empty((*shape[:-1], rows), dtype=dtype)
        self._packed.matmul_at(
            plain.data_ptr(),
            dtype_name(x.dtype),
            x.numel() // cols,
            out.data_ptr(),
            dtype_name(dtype),
            half,
        )
        return out

    def on_device(self, device: int) -> _core.DeviceProduct:
        """Return the product with this matrix on a GPU, which :mod:`llava_fa.device_ops` launches.

        Raises
        ------
        DeviceError
            No GPU can be used, or not this one.
        """
        return _core.DeviceProduct(self._packed, device)

    def relative_error(self, weight: Array) -> float:
        """Return ``||weight - dense||² / ||weight||²`` (Frobenius); 0 for an exact zero matrix.

        On the GPU if the weight is there.
        """
        if is_on_gpu(weight):
            from .device_compression import relative_error

            return relative_error(self, weight)
        reference = to_float64(weight)
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
    def from_state_dict(
        cls, tensors: Mapping[str, Array], *, in_place: bool = False
    ) -> CompressedMatrix:
        """Build from stored tensors, checking all of them.

        Parameters
        ----------
        tensors
            Suffix to tensor, on the CPU.
        in_place
            Use the tensors' memory instead of a copy (except of a tensor that is not contiguous
            or not aligned); it must not change while the matrix is used.

        Raises
        ------
        FormatError
            If a tensor is missing, has another dtype or shape than the header implies, or holds
            values that no encoder writes.
        """
        arrays = {name: _stored_array(name, value) for name, value in tensors.items()}
        flat = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}
        packed = _core.PackedMatrix.from_tensors(flat, in_place=in_place)
        matrix = cls(packed, as_torch=any(is_torch(value) for value in tensors.values()))
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
        (m, n) = (output, input channels), NumPy array or torch tensor of float16, bfloat16,
        float32 or float64, contiguous or not. A tensor on an NVIDIA GPU is compressed there; the
        result is on the CPU.
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
    DeviceError, DeviceMemoryError
        If the weight is on a GPU that cannot be used, or whose memory is too full.

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
    if is_on_gpu(weight):
        from .device_compression import compress

        packed, objective = compress(weight, config, input_second_moment, output_second_moment)
    else:
        packed, objective = _core.compress_matrix(
            exportable(weight),
            core_options(config),
            input_second_moment=exportable_or_none(input_second_moment),
            output_second_moment=exportable_or_none(output_second_moment),
        )
    return CompressedMatrix(packed, as_torch=is_torch(weight), objective=tuple(objective))


def core_options(config: CompressionConfig) -> _core.CompressionOptions:
    """Return the options of one matrix as the core takes them."""
    return _core.CompressionOptions(
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
    )


def _stored_array(name: str, array: Array) -> npt.NDArray[Any]:
    try:
        return np.ascontiguousarray(to_numpy(array))
    except TypeError as error:
        raise FormatError(f'tensor "{name}": {error}') from error

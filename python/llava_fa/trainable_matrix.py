"""A stored matrix whose scales and factors can be trained: the decoding of docs/format.md in torch.

The codes stay as they are. What is trained are changes: of the logarithm of every scale, and of
the factors in units of their component's size; all zero at the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from . import _core
from .config import FACTOR_BITS_FLOAT16
from .matrix import CompressedMatrix
from .matrix_spec import MatrixSpec
from .stages import polar_decode, polar_encode

SCALES = ("row_scale", "channel_scale_in", "channel_scale_out")
FACTORS = ("low_rank_left", "low_rank_right")

_LARGEST_SCALE = torch.finfo(torch.float16).max


def decode_weight(
    unit_codes: Tensor,
    row_scale: Tensor,
    low_rank: Tensor | None,
    input_scale: Tensor,
    output_scale: Tensor,
) -> Tensor:
    """Decode a matrix, differentiably in everything but the codes.

    Parameters
    ----------
    unit_codes
        Points of the codes with all row scales one, (h, n) complex, h = m // 2 + 1.
    row_scale
        (h,) real.
    low_rank
        L₁ L₂, (h, n) complex; None at rank 0.
    input_scale, output_scale
        (n,) and (m,) real: channel scales with their signs, and ``matrix_scale`` in either.

    Returns
    -------
    Tensor
        The weight, (m, n) real.
    """
    channels = len(output_scale)
    spectrum = row_scale[:, None] * unit_codes
    if low_rank is not None:
        spectrum = spectrum + low_rank
    spectrum = spectrum / _parseval_weights(channels).to(row_scale)[:, None]
    rows = torch.fft.ifft(spectrum, dim=1, norm="ortho")
    plain = torch.fft.irfft(rows, n=channels, dim=0, norm="ortho")
    weight: Tensor = output_scale[:, None] * plain * input_scale
    return weight


def _parseval_weights(channels: int) -> Tensor:
    weights = torch.full((channels // 2 + 1,), 2.0, dtype=torch.float64).sqrt()
    weights[0] = 1.0
    if channels % 2 == 0:
        weights[-1] = 1.0
    return weights


class TrainableMatrix(nn.Module):
    """One stored matrix with its trainable changes.

    The weight is always that of the values as they would be stored: scales rounded to float16,
    polar-coded factors encoded anew. Gradients pass through the rounding as if it were not there.

    Parameters
    ----------
    matrix
        The matrix as it was stored; torch tensors on the CPU.
    """

    def __init__(self, matrix: CompressedMatrix) -> None:
        super().__init__()
        self.spec: MatrixSpec = matrix.spec
        self._stored = matrix.state_dict()
        ones = torch.ones_like(self._stored["row_scale"])
        # Packed as in the file; decoded whenever the weight is needed.
        self._unit = CompressedMatrix.from_state_dict({**self._stored, "row_scale": ones})
        self.changes = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name, shape in self._trainable().items()}
        )

    def _trainable(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            name: tuple(self._stored[name].shape) for name in SCALES if name in self._stored
        }
        if self.spec.rank:
            rows, columns = self.spec.shape
            shapes[FACTORS[0]] = (self.spec.rank, rows // 2 + 1, 2)
            shapes[FACTORS[1]] = (self.spec.rank, columns, 2)
        return shapes

    def weight(self) -> Tensor:
        """Return the weight under the present changes, (m, n) float32."""
        rows, columns = self.spec.shape
        planes = self._unit.code_planes()
        size = self._stored["matrix_scale"]
        return decode_weight(
            torch.complex(planes[0], planes[1]),
            self._scale("row_scale"),
            self._low_rank(),
            self._channel_scale("channel_scale_in", 0, columns),
            self._channel_scale("channel_scale_out", 1, rows) * size,
        )

    def _scale(self, name: str) -> Tensor:
        changed = self._stored[name].float() * self.changes[name].exp()
        rounded = changed.detach().clamp(max=_LARGEST_SCALE).half().float()
        return _straight_through(changed, rounded)

    def _channel_scale(self, name: str, stream: int, count: int) -> Tensor:
        scale = self._scale(name) if name in self._stored else torch.ones(count)
        if not self.spec.signs:
            return scale
        return scale * torch.as_tensor(_core.random_signs(self.spec.seed, stream, count))

    def _low_rank(self) -> Tensor | None:
        if not self.spec.rank:
            return None
        left, right = (torch.view_as_complex(self._factor(name)) for name in FACTORS)
        return left.transpose(0, 1) @ right

    def _factor(self, name: str) -> Tensor:
        """Return a factor as it would be stored, (r, length, 2) real and imaginary."""
        start = self._decoded_factor(name, self._stored)
        size = start.square().mean((1, 2), keepdim=True).sqrt()
        changed = start + size * self.changes[name]
        rounded = self._decoded_factor(name, self._encoded_factor(name, changed.detach()))
        return _straight_through(changed, rounded)

    def _encoded_factor(self, name: str, values: Tensor) -> dict[str, Tensor]:
        """Return the stored tensors of a factor."""
        bits = self.spec.factor_bits
        if bits == FACTOR_BITS_FLOAT16:
            return {name: values.clamp(-_LARGEST_SCALE, _LARGEST_SCALE).half()}
        # Encoding what was just decoded gives the same codes, so zero changes change nothing.
        codes, scale = polar_encode(torch.view_as_complex(values.contiguous()), bits)
        return {name: codes, f"{name}_scale": scale}

    def _decoded_factor(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return (r, length, 2) float32 from stored tensors."""
        bits, length = self.spec.factor_bits, self._trainable()[name][1]
        if bits == FACTOR_BITS_FLOAT16:
            return tensors[name].float()
        decoded = polar_decode(tensors[name], tensors[f"{name}_scale"], length, bits)
        return torch.view_as_real(decoded)

    @torch.no_grad()
    def stored(self) -> dict[str, Tensor]:
        """Return the tensors to store, under the suffixes of ``docs/format.md``."""
        tensors = dict(self._stored)
        for name in self.changes:
            if name in SCALES:
                tensors[name] = self._scale(name).half()
            else:
                tensors.update(self._encoded_factor(name, self._factor(name)))
        return tensors


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded value with the gradient of the value."""
    # In this order the sum is the rounded value exactly.
    return rounded + (value - value.detach())

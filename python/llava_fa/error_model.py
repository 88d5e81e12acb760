r"""Predicts the error of a matrix at every code size and rank, before any of it is compressed.

Random signs make every matrix's spectrum alike, so its relative error is ``κ(r) · D(B)`` with one
measured distortion D per codec and code size, and κ from the matrix's scales and singular values:

.. math::
    \kappa(r) = \frac{\|\bar W\|^2 \sum_i a_i^2 \sum_j b_j^2}{m n \|W\|^2} \, t(r) (1 - f)^2

where a, b are the channel scales of decoding (the fraction is 1 without them), t(r) the share of
the half spectrum's energy beyond rank r, and f = r (h + n) / (h n) the share of the spectrum's
degrees of freedom that the low-rank part takes from the codes' error in the alternation. The
rounding of the factors, in energy ρ (1 - t(r)), is either absorbed by the codes,
``(t + ρ (1 - t)) D`` without the gain of the refit, or comes on top of it; the smaller counts.

With the second moment of the inputs κ(0) and the error are those of the layer's output
(:mod:`llava_fa.output_error`), and D is measured with error feedback if there will be any.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .arrays import exportable
from .config import FACTOR_BITS_FLOAT16, CompressionConfig
from .errors import NonFiniteError
from .matrix import compress_matrix
from .output_error import output_noise_gain, uses_feedback
from .stages import diagonal_scales, half_spectrum, polar_decode, polar_encode, truncated_svd

CODE_SIZES: tuple[float, ...] = tuple(half / 2 for half in range(2, 11))
"""Code bits per weight that an allocation chooses from."""
DEFAULT_RANKS = (0,)
"""Ranks that an allocation chooses from. Ranks above 0 lower the error of weights at equal bytes a
little, and do not change what a model answers (``bench/allocation.py``)."""

_SAMPLE = 256  # rows and columns of the Gaussian matrix that measures a codec's distortion
# Standard deviation of the logarithm of the input powers for which feedback's distortion is
# measured: feedback then gains about 9 dB, as it does in transformers.
_SPREAD = 3.0


@dataclass(frozen=True)
class MatrixProfile:
    """What the prediction needs to know of one matrix.

    Attributes
    ----------
    shape
        (m, n).
    channel_scale_in, channel_scale_out
        Whether these will be stored.
    noise_gain
        Relative error per unit of distortion at rank 0: κ(0).
    tail
        Rank → share of the half spectrum's energy beyond it.
    of_output
        Whether the error is that of the layer's output instead of the weight.
    fed_back
        Whether codes are found with error feedback.
    """

    shape: tuple[int, int]
    channel_scale_in: bool
    channel_scale_out: bool
    noise_gain: float
    tail: Mapping[int, float]
    of_output: bool = False
    fed_back: bool = False

    def unit(self, config: CompressionConfig) -> float:
        """What of :meth:`relative_error` counts as one for a model.

        Of an output the part that its own inputs predict from each other counts for nothing, and of
        the rest the share D, that of codes without feedback, whatever feedback gains and costs
        (docs/method.md).
        """
        if not self.of_output or self.noise_gain <= 0:
            return 1.0
        return self.noise_gain * distortion_of(config, self.fed_back) / code_distortion(config)

    def relative_error(self, config: CompressionConfig) -> float:
        """Predict the relative squared error of the weight, or of the layer's output."""
        rows, columns = self.shape[0] // 2 + 1, self.shape[1]
        tail = self.tail[config.rank]
        freedom = min(1.0, config.rank * (rows + columns) / (rows * columns))
        distortion = distortion_of(config, self.fed_back)
        rounded = (1 - tail) * factor_distortion(config.factor_bits)
        # The codes absorb the factors' rounding, unless the refit at the end pays for its own.
        absorbed = (tail + rounded) * distortion
        refitted = tail * (1 - freedom) ** 2 * distortion + rounded
        return self.noise_gain * min(absorbed, refitted)


def profile_matrix(
    weight: torch.Tensor,
    config: CompressionConfig,
    ranks: Sequence[int] = (0,),
    calibrated: bool = False,
    second_moment: torch.Tensor | None = None,
) -> MatrixProfile:
    """Measure what an allocation needs of one weight, in a fraction of the time to compress it.

    Parameters
    ----------
    weight
        (m, n), on the CPU.
    config
        The settings it will be compressed with, but for code size and rank.
    ranks
        Ranks at which the tail energy is wanted; those that do not fit the shape are left out.
    calibrated
        Whether there will be second moments of the inputs. Without feedback they choose the input
        channel scales: then room is set aside for these.
    second_moment
        That of the inputs, (n, n) or (n,), if it is known: then the error is that of the output.
        If it is not, though ``calibrated``, the error is that of unscaled noise in the weight.

    Raises
    ------
    NonFiniteError
        The weight holds NaN or infinity.
    """
    rows, columns = weight.shape
    weight = exportable(weight)
    dense = weight.to(torch.float32)
    peak = max(abs(float(bound)) for bound in torch.aminmax(dense))
    if not math.isfinite(peak):
        raise NonFiniteError("holds NaN or infinity")
    dense = dense / peak if peak else dense  # squares stay within float32
    tail_ranks = [rank for rank in ranks if rank <= min(rows // 2 + 1, columns)]
    scaled = config.odc == "spatial"
    scale_in, scale_out = diagonal_scales(weight) if scaled else (None, None)
    by_inputs = calibrated and config.calibration == "diagonal"
    coded = dense
    if not by_inputs:
        coded = dense if scale_out is None else dense / scale_out.float()[:, None]
        coded = coded if scale_in is None else coded / scale_in.float()
    gain = None if second_moment is None else output_noise_gain(dense, config, second_moment)
    return MatrixProfile(
        (rows, columns),
        scaled if by_inputs else scale_in is not None,
        scale_out is not None,
        _noise_gain(dense, coded, scale_in, scale_out) if gain is None else gain,
        _tail_energy(coded, config.signs, tail_ranks),
        of_output=gain is not None,
        fed_back=second_moment is not None and uses_feedback(config, second_moment),
    )


def _noise_gain(
    dense: torch.Tensor,
    coded: torch.Tensor,
    scale_in: torch.Tensor | None,
    scale_out: torch.Tensor | None,
) -> float:
    """Noise that is white in the scaled matrix, relative to the weight; 1 if nothing is scaled."""
    if coded is dense:
        return 1.0
    energy = float(dense.square().sum(dtype=torch.float64))
    if energy == 0:
        return 0.0
    noise = float(coded.square().mean(dtype=torch.float64))
    for size, scale in zip(dense.shape, (scale_out, scale_in), strict=True):
        noise *= size if scale is None else float(scale.double().square().sum())
    return noise / energy


def _tail_energy(coded: torch.Tensor, signs: bool, ranks: Sequence[int]) -> dict[int, float]:
    energy = float(coded.square().sum(dtype=torch.float64))
    largest = max(ranks, default=0)
    if largest == 0 or energy == 0:
        return dict.fromkeys(ranks, 1.0)
    if signs:
        # Any signs do: the singular values depend on which ones hardly at all.
        generator = torch.Generator().manual_seed(0)
        for axis, size in enumerate(coded.shape):
            flips = torch.randint(0, 2, (size,), generator=generator).mul_(2).sub_(1).float()
            coded = coded * (flips[:, None] if axis == 0 else flips)
    values = truncated_svd(half_spectrum(coded), largest, power_iterations=1)[1].double()
    captured = torch.cat([torch.zeros(1, dtype=torch.float64), values.square().cumsum(0)])
    return {rank: max(0.0, 1 - float(captured[rank]) / energy) for rank in ranks}


def distortion_of(config: CompressionConfig, fed_back: bool) -> float:
    """Return the distortion of codes that are found with or without error feedback."""
    return fed_back_distortion(config) if fed_back else code_distortion(config)


def code_distortion(config: CompressionConfig) -> float:
    """Return D(B): the codes' relative squared error on a seeded Gaussian matrix, measured once."""
    return _measured_distortion(config.replace(rank=0, odc="none", seed=0).for_checkpoint())


def fed_back_distortion(config: CompressionConfig) -> float:
    """Return D(B) of codes found with error feedback, whose target is more than the weight itself.

    The output error of a seeded Gaussian matrix on inputs of typical spread, over what white noise
    of power one would give: above :func:`code_distortion` at few bits, close to it at many.
    """
    return _measured_fed_back_distortion(
        config.replace(rank=0, odc="none", seed=0).for_checkpoint()
    )


@functools.cache
def _measured_fed_back_distortion(config: CompressionConfig) -> float:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(_SAMPLE, _SAMPLE, generator=generator)
    powers = (_SPREAD * torch.randn(_SAMPLE, generator=generator)).exp()
    moment = torch.diag(powers)
    decoded = compress_matrix(sample, config, input_second_moment=moment).dense()
    error = float(((decoded - sample).double().square() @ powers.double()).sum())
    energy = float((sample.double().square() @ powers.double()).sum())
    return error / energy / (output_noise_gain(sample, config, moment) or 1.0)


@functools.cache
def _measured_distortion(config: CompressionConfig) -> float:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(_SAMPLE, _SAMPLE, generator=generator)
    return compress_matrix(sample, config).relative_error(sample)


@functools.cache
def factor_distortion(bits: int) -> float:
    """Return the relative squared error of low-rank factors of so many bits per complex entry."""
    if bits == FACTOR_BITS_FLOAT16:
        return 0.0
    random = np.random.default_rng(0).standard_normal((2, 8, 4096)).astype(np.float32)
    values = random[0] + 1j * random[1]
    decoded = polar_decode(*polar_encode(values, bits), values.shape[1], bits)
    return float(np.square(np.abs(decoded - values)).sum() / np.square(np.abs(values)).sum())

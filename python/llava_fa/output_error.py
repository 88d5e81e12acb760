r"""What white noise of a matrix's codes does to the output of its layer, from data.

For inputs x with second moment :math:`\Sigma = E[x x^T]` an error :math:`\Delta` of the weight W
changes the output by :math:`tr(\Delta \Sigma \Delta^T)`, of :math:`tr(W \Sigma W^T)`. With channel
scales a (output) and b (input) of decoding, :math:`W = diag(a) \bar W diag(b)`, noise of the
relative power D in :math:`\bar W` makes of that the share

.. math::
    \kappa D, \qquad \kappa = \frac{\sum_i a_i^2 \; mean(\bar W^2) \sum_j b_j^2 \Sigma_{jj} \;
    \varphi}{tr(W \Sigma W^T)}

where :math:`\varphi` is what error feedback leaves of the noise: the mean pivot of its filter,
less the part that only damping counts (``llava_fa/feedback.hpp``), but at least half of it; 1
without feedback.
"""

from __future__ import annotations

import torch

from . import _core
from .arrays import exportable
from .config import CompressionConfig
from .stages import diagonal_scales

# Of the damped error: where less is left, examples too few or too alike leave directions of the
# input without any, which other inputs will have.
_LEAST_SHARE = 0.5


def output_noise_gain(
    weight: torch.Tensor, config: CompressionConfig, second_moment: torch.Tensor
) -> float | None:
    """Return κ: the relative output error of a layer per unit of its codes' distortion.

    Parameters
    ----------
    weight
        (m, n), finite, on the CPU.
    config
        The settings that it will be compressed with, but for code size and rank.
    second_moment
        E[x xᵀ], (n, n), or its diagonal, (n,), as the compression will be given it.

    Returns
    -------
    float or None
        None if these inputs give no output to compare with.
    """
    weight = exportable(weight)
    dense = weight.to(torch.float32)
    energy = _output_energy(dense, second_moment)
    if not energy > 0:
        return None
    # Under feedback scales depend on the weight alone.
    known = None if uses_feedback(config, second_moment) else second_moment
    scale_in, scale_out = (
        diagonal_scales(weight, known) if config.odc == "spatial" else (None, None)
    )
    decode_in = torch.ones(dense.shape[1]) if scale_in is None else scale_in.float()
    decode_out = torch.ones(dense.shape[0]) if scale_out is None else scale_out.float()
    power = float((dense / decode_out[:, None] / decode_in).square().mean(dtype=torch.float64))
    inputs = float((decode_in.double().square() * _diagonal(second_moment).double()).sum())
    noise = float(decode_out.double().square().sum()) * power * inputs
    return noise * _left_by_feedback(second_moment, decode_in, config) / energy


def uses_feedback(config: CompressionConfig, second_moment: torch.Tensor) -> bool:
    """Return whether codes will be found with error feedback."""
    return second_moment.ndim == 2 and config.calibration == "hessian"


def _left_by_feedback(
    second_moment: torch.Tensor, decode_in: torch.Tensor, config: CompressionConfig
) -> float:
    if not uses_feedback(config, second_moment):
        return 1.0
    signs = torch.ones_like(decode_in)
    if config.signs:
        signs = torch.from_numpy(_core.random_signs(config.seed, 0, len(decode_in)))
    multiplier = (decode_in * signs).numpy()
    damped, exact = _core.fed_back_noise(second_moment.numpy(), multiplier)
    return float(max(exact, _LEAST_SHARE * damped))


def _output_energy(dense: torch.Tensor, second_moment: torch.Tensor) -> float:
    """Return tr(W Σ Wᵀ), or with the diagonal alone what independent inputs would give."""
    if second_moment.ndim == 1:
        columns = dense.square().sum(0, dtype=torch.float64)
        return float(columns @ second_moment.double())
    return float(((dense @ second_moment.float()) * dense).sum(dtype=torch.float64))


def _diagonal(second_moment: torch.Tensor) -> torch.Tensor:
    return second_moment.diagonal() if second_moment.ndim == 2 else second_moment

"""Low rank and codes together without the frequency domain: ASVD+Q, SVD-LLM, LQER+Q, LQ-LoRA.

Each is "-like": the published decomposition, with the group-wise codes that all baselines share,
at a given number of stored bits. What a paper leaves open (widths, group sizes, ranks) is chosen
per matrix by the calibrated output error ``tr(E H E^T)``, H = E[x x^T], in the method's favour.

- ``low_rank_alone``: W ~ L R by the SVD of W S, un-weighted after it. S = diag(E[x_j^2]^(1/4)) is
  ASVD (arXiv 2312.05821, alpha = 1/2), S with S S^T = H is SVD-LLM (arXiv 2403.07378); the factors
  are rounded in groups.
- ``error_low_rank``: LQER (arXiv 2402.02446, the activation-weighted L2QER): W is rounded first,
  the low rank of the weighted error is added.
- ``joint_low_rank``: LQ-LoRA (arXiv 2311.12023): low rank and codes in turn, with weights of rows
  and columns; without gradients those of the rows are one.

Stored: codes, float16 scales and zero points of the matrix and of the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.baselines import Baseline, round_to_nearest
from bench.group_grid import group_bits

GROUP = 64
FACTOR_BITS = 8
FACTOR_WIDTHS = (3, 4, 6, 8)
"""Bits per entry of the factors that a pure low rank may take."""

CODE_GROUPS = (64, 128, 256)
ALTERNATIONS = 6


@dataclass(frozen=True)
class Weighting:
    """S and its inverse: diagonals (n,) or full matrices (n, n), float64."""

    forward: Tensor
    inverse: Tensor

    def apply(self, matrix: Tensor) -> Tensor:
        """Return ``matrix S``."""
        return matrix * self.forward if self.forward.ndim == 1 else matrix @ self.forward

    def undo(self, matrix: Tensor) -> Tensor:
        """Return ``matrix S^-1``."""
        return matrix * self.inverse if self.inverse.ndim == 1 else matrix @ self.inverse


def activity(second_moment: Tensor, power: float = 1.0) -> Weighting:
    """Weight by the channels' root mean square to a power; silent channels by a thousandth."""
    mean_square = second_moment.diagonal().double()
    floor = 1e-6 * mean_square.mean().clamp_min(torch.finfo(torch.float64).tiny)
    scale = mean_square.clamp_min(floor).pow(power / 2)
    return Weighting(scale, 1 / scale)


def whitening(second_moment: Tensor, damping: float = 1e-4) -> Weighting:
    """Weight by the Cholesky factor of H, damped by a share of its mean diagonal."""
    moment = second_moment.double()
    eye = torch.eye(len(moment), dtype=torch.float64)
    level = moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    lower = torch.linalg.cholesky(moment + damping * level * eye)
    return Weighting(lower, torch.linalg.solve_triangular(lower, eye, upper=False))


def weighted_svd(matrix: Tensor, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """Factors (m, r), (r, n) of all ranks r; their first columns and rows are the best of a rank.

    ``|| (matrix - left right) S ||`` is least for every leading part.
    """
    u, s, vh = torch.linalg.svd(weighting.apply(matrix.double()), full_matrices=False)
    root = s.sqrt()
    return u * root, weighting.undo(root[:, None] * vh)


def stored_factors(left: Tensor, right: Tensor, bits: int) -> Baseline:
    """Round the factors along their long sides in groups; the product and its bits."""
    if left.shape[1] == 0:
        return Baseline(torch.zeros(len(left), right.shape[1]), 0)
    rows = round_to_nearest(left.T, bits, GROUP)
    columns = round_to_nearest(right, bits, GROUP)
    return Baseline(rows.dense.T @ columns.dense, rows.stored_bits + columns.stored_bits)


def rank_within(shape: torch.Size, bits: float, width: int) -> int:
    """Return the largest rank whose factors take at most ``bits`` bits."""
    per_rank = sum(group_bits(1, side, width, GROUP) for side in shape)
    return max(0, min(int(bits // per_rank), *shape))


def output_error(weight: Tensor, second_moment: Tensor, coded: Baseline) -> float:
    """``tr(E H E^T)`` of the difference E."""
    difference = weight.double() - coded.dense.double()
    return float(((difference @ second_moment.double()) * difference).sum())


def low_rank_alone(
    weight: Tensor, second_moment: Tensor, target_bits: int, weighting: Weighting
) -> Baseline:
    """Spend all bits on the factors; the best of ``FACTOR_WIDTHS``."""
    left, right = weighted_svd(weight, weighting)

    def at(width: int) -> Baseline:
        rank = rank_within(weight.shape, target_bits, width)
        return stored_factors(left[:, :rank], right[:rank], width)

    return _best(weight, second_moment, (at(width) for width in FACTOR_WIDTHS))


def asvd(weight: Tensor, second_moment: Tensor, target_bits: int) -> Baseline:
    """ASVD with rounded factors."""
    return low_rank_alone(weight, second_moment, target_bits, activity(second_moment, 0.5))


def svd_llm(weight: Tensor, second_moment: Tensor, target_bits: int) -> Baseline:
    """SVD-LLM with rounded factors."""
    return low_rank_alone(weight, second_moment, target_bits, whitening(second_moment))


def error_low_rank(weight: Tensor, second_moment: Tensor, target_bits: int) -> Baseline:
    """LQER: round, then add the low rank of the weighted error."""
    weighting = activity(second_moment)

    def at(bits: int, group: int) -> Baseline:
        coded = round_to_nearest(weight, bits, group)
        left, right = weighted_svd(weight - coded.dense, weighting)
        return _with_low_rank(coded, left, right, target_bits)

    return _best(weight, second_moment, _over_codes(weight, target_bits, at))


def joint_low_rank(weight: Tensor, second_moment: Tensor, target_bits: int) -> Baseline:
    """LQ-LoRA: low rank and codes in turn, the best iterate by the weighted error."""
    weighting = activity(second_moment)

    def at(bits: int, group: int) -> Baseline:
        spare = target_bits - group_bits(*weight.shape, bits, group)
        rank = rank_within(weight.shape, spare, FACTOR_BITS)
        coded, iterates = torch.zeros_like(weight), []
        for _ in range(ALTERNATIONS):
            left, right = weighted_svd(weight - coded, weighting)
            low = stored_factors(left[:, :rank], right[:rank], FACTOR_BITS)
            rounded = round_to_nearest(weight - low.dense, bits, group)
            coded = rounded.dense
            iterates.append(Baseline(coded + low.dense, rounded.stored_bits + low.stored_bits))
        return _best(weight, torch.diag(weighting.forward.square()), iterates)

    return _best(weight, second_moment, _over_codes(weight, target_bits, at))


def _with_low_rank(coded: Baseline, left: Tensor, right: Tensor, target_bits: int) -> Baseline:
    """Add as many ranks of the factors as the remaining bits allow."""
    shape = coded.dense.shape
    rank = rank_within(shape, target_bits - coded.stored_bits, FACTOR_BITS)
    low = stored_factors(left[:, :rank], right[:rank], FACTOR_BITS)
    return Baseline(coded.dense + low.dense, coded.stored_bits + low.stored_bits)


def _over_codes(
    weight: Tensor, target_bits: int, at: Callable[[int, int], Baseline]
) -> list[Baseline]:
    """Try every width and group size whose codes leave room for at least one rank."""
    results = []
    for bits in range(2, 9):
        for group in CODE_GROUPS:
            spare = target_bits - group_bits(*weight.shape, bits, group)
            # More than two bits per weight in the factors never paid.
            if spare <= 2 * weight.numel() and rank_within(weight.shape, spare, FACTOR_BITS) > 0:
                results.append(at(bits, group))
    if not results:
        smallest = group_bits(*weight.shape, 2, CODE_GROUPS[-1]) / weight.numel()
        raise ValueError(
            f"{target_bits / weight.numel():.3f} bits per weight leave no room for a low rank "
            f"beside 2-bit codes ({smallest:.3f}) of a weight of shape {tuple(weight.shape)}"
        )
    return results


def _best(weight: Tensor, second_moment: Tensor, candidates: Iterable[Baseline]) -> Baseline:
    return min(candidates, key=lambda coded: output_error(weight, second_moment, coded))

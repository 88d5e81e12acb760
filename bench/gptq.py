"""GPTQ: error feedback over the columns of a weight, plain and as strong as it can be made.

For ``y = W x`` with second moment ``H = E[x x^T]`` the output error of codes Q is
``tr((W - Q) H (W - Q)^T)``. With ``inv(H + damping) = U^T U`` (U upper triangular) the columns are
coded one after the other, in some order (arXiv 2210.17323):

1. ``inverse_factor``: U in the processing order;
2. a grid per row and group (``GROUPINGS``, ``SEARCHES``);
3. ``feed_back``: code column j, ``e = (w_j - q_j) / U_jj``, then ``w_k -= e U_jk`` for k > j.

The fed-back objective is the sum of all e^2, which the search for scales can use (``feedback``).
Everything runs in float64. Stored: codes, a float16 scale and a zero point per row and group, and
for groups in activation order the group of each input channel, ceil(log2 groups) bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.baselines import Baseline
from bench.group_grid import (
    Grid,
    candidate_grids,
    cut,
    group_bits,
    range_grid,
    searched_grid,
)

ORDERS = ("none", "static", "activation")
"""Columns as they are; by falling activity with groups of neighbours whose grids are set before;
by falling activity with groups of columns that follow each other in that order."""

SEARCHES = ("none", "plain", "weighted", "feedback")
"""Full range; clipped for least |error|^2.4 (as GPTQ's own code); for least (error / U_jj)^2; for
the least fed-back objective of the group."""

GridOf = Callable[[Tensor, Tensor, int, int], Grid]


@dataclass(frozen=True)
class GptqSettings:
    """How to run GPTQ; the default is the plain method.

    Parameters
    ----------
    bits, group : int
        Bits per code and columns per group.
    order : str
        One of ``ORDERS``.
    search : str
        One of ``SEARCHES``.
    damping : float
        Added to the diagonal, as a share of its mean.
    """

    bits: int
    group: int = 64
    order: str = "none"
    search: str = "none"
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.order not in ORDERS or self.search not in SEARCHES:
            raise ValueError(
                f"order {self.order!r} and search {self.search!r}: expected one of {ORDERS} and "
                f"one of {SEARCHES}"
            )
        if self.order == "static" and self.search == "feedback":
            raise ValueError(
                "static groups are not processed together, so their fed-back objective is not "
                'known in advance: use search="weighted"'
            )


def strong(bits: int, group: int = 64) -> GptqSettings:
    """Return the baseline to beat: true activation order, clipped scales by GPTQ's own search.

    These are the best settings that users of GPTQ have. ``search="feedback"`` is a step beyond
    any installation and stands in a row of its own.
    """
    return GptqSettings(bits, group, order="activation", search="plain")


def gptq(weight: Tensor, second_moment: Tensor, settings: GptqSettings) -> Baseline:
    """Code a weight with error feedback.

    Parameters
    ----------
    weight : Tensor, (m, n)
    second_moment : Tensor, (n, n)
        E[x x^T] of the inputs. Channels that are never active get the weight zero.
    settings : GptqSettings

    Returns
    -------
    Baseline
        The decoded weight in float32 and all stored bits.
    """
    rows, columns = weight.shape
    if second_moment.shape != (columns, columns):
        raise ValueError(
            f"the second moment has shape {tuple(second_moment.shape)}, expected "
            f"{(columns, columns)} for a weight of shape {tuple(weight.shape)}"
        )
    moment = second_moment.double().clone()
    silent = moment.diagonal() <= 0
    moment.diagonal()[silent] = 1.0
    values = weight.double().masked_fill(silent, 0.0)
    order = torch.arange(columns)
    if settings.order != "none":
        order = moment.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(moment[order][:, order], settings.damping)
    if settings.order == "static":
        grid_of = _static_grids(values, factor, order, settings)
    else:
        grid_of = _grids_when_reached(settings)
    coded = torch.empty_like(values)
    coded[:, order] = feed_back(values[:, order], factor, grid_of, settings.group)
    bits = group_bits(rows, columns, settings.bits, settings.group)
    if settings.order == "activation":
        groups = -(-columns // settings.group)
        bits += columns * (groups - 1).bit_length()
    return Baseline(coded.float(), bits)


def inverse_factor(moment: Tensor, damping: float) -> Tensor:
    """Return upper triangular U with ``U^T U = inv(moment + damping * mean diagonal)``."""
    size = len(moment)
    damped = moment + damping * moment.diagonal().mean() * torch.eye(size, dtype=moment.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def feed_back(values: Tensor, factor: Tensor, grid_of: GridOf, block: int) -> Tensor:
    """Code the columns from left to right and return their values; ``values`` stay as they are.

    ``grid_of(values, factor, start, stop)`` gives the grid of a block of columns when every
    earlier column is coded, from the values as fed back so far.
    """
    values = values.clone()
    coded = torch.empty_like(values)
    for start in range(0, values.shape[1], block):
        stop = min(start + block, values.shape[1])
        grid = grid_of(values, factor, start, stop)
        coded[:, start:stop], errors = _code_block(
            values[:, start:stop], factor[start:stop, start:stop], grid
        )
        values[:, stop:] -= errors @ factor[start:stop, stop:]
    return coded


def _code_block(values: Tensor, factor: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Code one block with feedback inside it: (coded values, errors e), each (..., rows, width).

    The grid has one entry per row, or one per row and column.
    """
    values = values.clone()
    coded, errors = torch.empty_like(values), torch.empty_like(values)
    per_column = grid.scale.shape[-1] > 1
    for j in range(values.shape[-1]):
        place = slice(j, j + 1) if per_column else slice(0, 1)
        own = Grid(grid.scale[..., place], grid.zero[..., place], grid.levels)
        column = values[..., j : j + 1]
        coded[..., j : j + 1] = own.round(column)
        error = (column - coded[..., j : j + 1]) / factor[j, j]
        errors[..., j : j + 1] = error
        values[..., j + 1 :] -= error * factor[j, j + 1 :]
    return coded, errors


def _grids_when_reached(settings: GptqSettings) -> GridOf:
    """Return how the grid of a group is found when all columns before it are coded."""
    bits = settings.bits

    def grid_of(values: Tensor, factor: Tensor, start: int, stop: int) -> Grid:
        group = values[:, start:stop]
        if settings.search == "none":
            return range_grid(group, bits)
        if settings.search == "plain":
            return searched_grid(group, bits, norm=2.4)
        if settings.search == "weighted":
            return searched_grid(group, bits, factor.diagonal()[start:stop].pow(-2))
        return _fed_back_grid(group, factor[start:stop, start:stop], bits)

    return grid_of


def _fed_back_grid(group: Tensor, factor: Tensor, bits: int) -> Grid:
    """Return per row the clipped grid whose fed-back errors inside the group are least."""
    grids = list(candidate_grids(group, bits, step=4))
    scale = torch.stack([grid.scale for grid in grids])
    zero = torch.stack([grid.zero for grid in grids])
    _, errors = _code_block(
        group.expand(len(grids), *group.shape), factor, Grid(scale, zero, grids[0].levels)
    )
    best = errors.square().sum(dim=2).argmin(dim=0)
    row = torch.arange(len(group))
    return Grid(scale[best, row], zero[best, row], grids[0].levels)


def _static_grids(values: Tensor, factor: Tensor, order: Tensor, settings: GptqSettings) -> GridOf:
    """Set the grids of groups of neighbouring columns before anything is coded."""
    groups = cut(values, settings.group)
    if settings.search == "none":
        grid = range_grid(groups, settings.bits)
    elif settings.search == "plain":
        grid = searched_grid(groups, settings.bits, norm=2.4)
    else:
        importance = torch.empty(len(order), dtype=values.dtype)
        importance[order] = factor.diagonal().pow(-2)
        grid = searched_grid(groups, settings.bits, cut(importance[None], settings.group))
    group_of = order // settings.group
    scale, zero = grid.scale[:, group_of, 0], grid.zero[:, group_of, 0]

    def grid_of(_values: Tensor, _factor: Tensor, start: int, stop: int) -> Grid:
        return Grid(scale[:, start:stop], zero[:, start:stop], grid.levels)

    return grid_of

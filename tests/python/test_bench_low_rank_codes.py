"""Low rank with codes: optimality of the decompositions, monotone choices, bits kept to."""

from __future__ import annotations

import pytest
import torch

from bench import baselines, matrices
from bench import low_rank_codes as lr
from bench.group_grid import group_bits

SHAPE = (128, 192)


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return matrices.low_rank_plus_noise(SHAPE, seed=4)


@pytest.fixture(scope="module")
def moment() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(600, SHAPE[1], generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-1, 1, SHAPE[1], dtype=torch.float64)
    x[:, 1:] += x[:, :-1]
    return x.T @ x / len(x)


METHODS = {
    "asvd": lr.asvd,
    "svd_llm": lr.svd_llm,
    "lqer": lr.error_low_rank,
    "lq_lora": lr.joint_low_rank,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_stored_bits_are_matched_and_never_exceeded(
    weight: torch.Tensor, moment: torch.Tensor, name: str, bits: int
) -> None:
    target = group_bits(*SHAPE, bits, 64)
    coded = METHODS[name](weight, moment, target)
    assert coded.dense.shape == SHAPE
    # At most one rank of 8-bit factors is left over.
    assert target - group_bits(1, sum(SHAPE), 8, 64) - 64 < coded.stored_bits <= target


def test_whitened_svd_is_the_best_low_rank_for_the_output(
    weight: torch.Tensor, moment: torch.Tensor
) -> None:
    left, right = lr.weighted_svd(weight, lr.whitening(moment, damping=0.0))
    found = lr.output_error(weight, moment, baselines.Baseline(left[:, :9] @ right[:9], 0))
    # Eckart-Young: the energy of the singular values of W S left out.
    singular = torch.linalg.svdvals(weight.double() @ torch.linalg.cholesky(moment))
    assert found == pytest.approx(float(singular[9:].square().sum()), rel=1e-8)
    other_left, other_right = lr.weighted_svd(weight, lr.activity(moment, 0.5))
    other = baselines.Baseline(other_left[:, :9] @ other_right[:9], 0)
    assert found < lr.output_error(weight, moment, other)


def test_factors_of_all_ranks_return_the_matrix(weight: torch.Tensor, moment: torch.Tensor) -> None:
    left, right = lr.weighted_svd(weight, lr.activity(moment))
    assert torch.allclose(left @ right, weight.double(), atol=1e-9)


def test_joint_is_no_worse_than_its_first_iterate(
    weight: torch.Tensor, moment: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = group_bits(*SHAPE, 3, 64)
    # Only the diagonal counts, so that the choice of the iterate is by the final measure.
    diagonal = torch.diag(moment.diagonal())
    joint = lr.output_error(weight, diagonal, lr.joint_low_rank(weight, diagonal, target))
    monkeypatch.setattr(lr, "ALTERNATIONS", 1)
    first = lr.output_error(weight, diagonal, lr.joint_low_rank(weight, diagonal, target))
    assert joint <= first


def test_low_rank_of_the_error_reduces_it(weight: torch.Tensor, moment: torch.Tensor) -> None:
    coded = baselines.round_to_nearest(weight, 2, 128)
    left, right = lr.weighted_svd(weight - coded.dense, lr.activity(moment))
    more = lr._with_low_rank(coded, left, right, group_bits(*SHAPE, 3, 64))
    assert lr.output_error(weight, moment, more) < lr.output_error(weight, moment, coded)


def test_too_few_bits_are_refused(weight: torch.Tensor, moment: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="leave no room"):
        lr.error_low_rank(weight, moment, SHAPE[0] * SHAPE[1])

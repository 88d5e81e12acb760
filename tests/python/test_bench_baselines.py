"""The benches' yardsticks give the figures that theory predicts for Gaussian weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench import baselines, matrices, plain_torch
from bench.plain_constellation import Constellation, product, ring, uniform


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return matrices.gaussian((256, 4096), seed=3)


# A group of 64 normals spans 4.70 standard deviations on average (its square 22.9), and rounding
# to 2^B - 1 steps leaves range^2 / (12 (2^B - 1)^2).
@pytest.mark.parametrize(("bits", "expected"), [(2, 0.2085), (3, 0.0381), (4, 0.00830)])
def test_round_to_nearest_has_the_error_of_its_range(
    weight: torch.Tensor, bits: int, expected: float
) -> None:
    coded = baselines.round_to_nearest(weight, bits)
    assert baselines.relative_error(weight, coded.dense) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("bits", "stored"), [(2, 2.28), (3, 3.30), (4, 4.31)])
def test_round_to_nearest_counts_scales_and_zero_points(
    weight: torch.Tensor, bits: int, stored: float
) -> None:
    assert baselines.round_to_nearest(weight, bits).bits_per_weight == pytest.approx(
        stored, abs=0.005
    )


def test_round_to_nearest_is_exact_on_its_own_grid() -> None:
    grid = (torch.arange(128) % 4).float().repeat(5, 1) - 1
    assert torch.equal(baselines.round_to_nearest(grid, 2).dense, grid)


def test_round_to_nearest_takes_a_short_last_group() -> None:
    weight = matrices.gaussian((8, 70))
    coded = baselines.round_to_nearest(weight, 4)
    assert coded.dense.shape == weight.shape
    assert coded.stored_bits == 8 * 70 * 4 + 8 * 2 * 20


def test_normal_float_4(weight: torch.Tensor) -> None:
    coded = baselines.normal_float_4(weight)
    assert coded.bits_per_weight == pytest.approx(4.25)
    assert baselines.relative_error(weight, coded.dense) == pytest.approx(0.00846, rel=0.03)


# Max, "Quantizing for minimum distortion", 1960, table I.
@pytest.mark.parametrize(
    ("bits", "expected"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.0095)]
)
def test_lloyd_max_in_the_spectrum(weight: torch.Tensor, bits: int, expected: float) -> None:
    coded = baselines.lloyd_max_rectangular(weight, bits)
    assert baselines.relative_error(weight, coded.dense) == pytest.approx(expected, rel=0.03)


def test_lloyd_max_levels_are_those_of_the_literature() -> None:
    levels = baselines.lloyd_max_levels(2)
    assert levels.tolist() == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=1e-3)


def test_optimal_rectangular_beats_uniform_rectangular(weight: torch.Tensor) -> None:
    best = baselines.lloyd_max_rectangular(weight, 2)
    plain = baselines.uniform_rectangular(weight, 2)
    assert best.stored_bits == plain.stored_bits
    error = baselines.relative_error
    assert error(weight, best.dense) < 0.6 * error(weight, plain.dense)


def test_spectral_low_rank_is_never_worse_at_the_same_rank() -> None:
    weight = matrices.low_rank_plus_noise((90, 70))
    for rank in (1, 5, 20):
        spatial = baselines.spatial_low_rank(weight, rank)
        spectral = baselines.spectral_low_rank(weight, rank)
        error = baselines.relative_error
        assert error(weight, spectral.dense) <= error(weight, spatial.dense) * (1 + 1e-5)


# The design's table of distortions on a circular Gaussian of unit power; what is better passes.
RING = {2: 0.363, 3: 0.2036, 4: 0.1093, 5: 0.0583, 6: 0.0306, 7: 0.0157, 8: 0.0082}
PRODUCT = {4: 0.1198, 5: 0.0716, 6: 0.0349, 7: 0.0190, 8: 0.0095}


@pytest.mark.parametrize(
    ("design", "bits", "expected"),
    [(ring, *item) for item in RING.items()] + [(product, *item) for item in PRODUCT.items()],
)
def test_plain_codes_reach_the_designs_table(
    design: Callable[[int], Constellation], bits: int, expected: float
) -> None:
    values = torch.randn(
        128, 4096, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)
    )
    code = design(bits)
    decoded = plain_torch.decode(*plain_torch.encode(values, code), code)
    distortion = float((values - decoded).abs().square().sum() / values.abs().square().sum())
    assert distortion <= expected * 1.02


def test_the_nearest_point_decision_is_never_worse() -> None:
    values = torch.randn(16, 512, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    code = ring(6)

    def error(nearest: bool) -> float:
        decoded = plain_torch.decode(*plain_torch.encode(values, code, nearest), code)
        return float((values - decoded).abs().square().sum())

    assert error(True) <= error(False)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 13), (8, 6), (6, 7)])
def test_half_spectrum_keeps_energy_and_returns(shape: tuple[int, int]) -> None:
    weight = matrices.gaussian(shape)
    spectrum = plain_torch.half_spectrum(weight)
    assert spectrum.shape == (shape[0] // 2 + 1, shape[1])
    assert float(spectrum.abs().square().sum()) == pytest.approx(
        float(weight.square().sum()), rel=1e-5
    )
    assert torch.allclose(plain_torch.inverse_half_spectrum(spectrum, shape[0]), weight, atol=1e-5)


def test_the_alternation_improves_on_low_rank_and_code_apart() -> None:
    weight = matrices.low_rank_plus_noise((96, 80))
    joint = plain_torch.compress(weight, plain_torch.PlainConfig(bits=2, rank=8))
    assert min(joint.objective) < joint.objective[0]
    # Rows 0 and m/2 stand for real sequences; the inverse drops the part of their error that does
    # not, so the dense error is a little below the objective.
    dense = plain_torch.relative_error(weight, joint.dense)
    assert 0.95 * min(joint.objective) < dense <= min(joint.objective) * (1 + 1e-4)


def test_uniform_levels_are_fractions_of_the_peak() -> None:
    code = uniform(4)
    assert code.radii.tolist() == [0.125, 0.375, 0.625, 0.875]
    assert code.phases.tolist() == [4, 4, 4, 4]

"""GPTQ and AWQ-like rounding of the benches against slow, literal computations in float64."""

from __future__ import annotations

import pytest
import torch

from bench import activation_aware, baselines, gptq, group_grid, matrices
from bench.gptq import GptqSettings


def moment_of(columns: int, seed: int = 0) -> torch.Tensor:
    """E[x x^T] of strongly correlated inputs with channels of very different activity."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * columns, columns // 2, generator=generator, dtype=torch.float64)
    x = x @ mix[: columns // 2] * torch.logspace(-1, 1, columns, dtype=torch.float64)
    x += 0.1 * torch.randn(*x.shape, generator=generator, dtype=torch.float64)
    return x.T @ x / len(x)


def output_error(weight: torch.Tensor, dense: torch.Tensor, moment: torch.Tensor) -> float:
    difference = weight.double() - dense.double()
    return float(((difference @ moment) * difference).sum())


def naive(weight: torch.Tensor, moment: torch.Tensor, settings: GptqSettings) -> torch.Tensor:
    """Optimal brain surgeon, literally: after each column the inverse of what remains, anew."""
    values = weight.double().clone()
    columns = values.shape[1]
    order = list(range(columns))
    if settings.order != "none":
        order = moment.diagonal().argsort(descending=True, stable=True).tolist()
    damped = moment + settings.damping * moment.diagonal().mean() * torch.eye(columns).double()
    static = {
        start: group_grid.range_grid(values[:, start : start + settings.group], settings.bits)
        for start in range(0, columns, settings.group)
    }
    coded = torch.zeros_like(values)
    grid = static[0]
    for place, column in enumerate(order):
        if settings.order == "static":
            grid = static[column // settings.group * settings.group]
        elif place % settings.group == 0:
            grid = group_grid.range_grid(
                values[:, order[place : place + settings.group]], settings.bits
            )
        coded[:, column] = grid.round(values[:, column : column + 1])[:, 0]
        rest = order[place:]
        inverse = torch.linalg.inv(damped[rest][:, rest])
        error = (values[:, column] - coded[:, column]) / inverse[0, 0]
        values[:, rest[1:]] -= error[:, None] * inverse[0, 1:]
    return coded


@pytest.mark.parametrize("order", gptq.ORDERS)
@pytest.mark.parametrize("columns", [16, 21])
def test_gptq_is_the_naive_column_by_column_computation(order: str, columns: int) -> None:
    weight, moment = matrices.gaussian((7, columns), seed=columns), moment_of(columns)
    settings = GptqSettings(3, group=8, order=order)
    found = gptq.gptq(weight, moment, settings).dense
    # Equal codes: the two computations differ by float64 rounding, far from any tie.
    assert torch.allclose(found.double(), naive(weight, moment, settings), rtol=1e-6, atol=1e-7)


def test_the_fed_back_errors_are_the_damped_output_error() -> None:
    weight, moment = matrices.gaussian((5, 24)).double(), moment_of(24)
    factor = gptq.inverse_factor(moment, 0.01)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(24).double()
    eye = torch.eye(24, dtype=torch.float64)
    assert torch.allclose(factor.T @ factor @ damped, eye, atol=1e-9)
    grid = group_grid.range_grid(weight, 2)
    coded, errors = gptq._code_block(weight, factor, grid)
    assert float(errors.square().sum()) == pytest.approx(
        output_error(weight, coded, damped), rel=1e-9
    )


def test_without_correlation_gptq_is_rounding() -> None:
    weight = matrices.gaussian((9, 128))
    found = gptq.gptq(weight, torch.eye(128), GptqSettings(3))
    # float64 against float32 scales: the same codes.
    assert torch.allclose(found.dense, baselines.round_to_nearest(weight, 3).dense, atol=1e-6)


def test_each_step_towards_the_strong_method_helps() -> None:
    weight, moment = matrices.gaussian((48, 128)), moment_of(128)

    def error(**settings: str) -> float:
        return output_error(
            weight, gptq.gptq(weight, moment, GptqSettings(2, **settings)).dense, moment
        )

    rounded = output_error(weight, baselines.round_to_nearest(weight, 2).dense, moment)
    plain = error()
    ordered = error(order="activation")
    strong = error(order="activation", search="plain")
    assert strong < ordered < plain < rounded
    assert error(order="activation", search="feedback") < ordered
    assert error(order="activation", search="weighted") < ordered


def test_fed_back_search_is_never_worse_within_one_group() -> None:
    weight, moment = matrices.gaussian((16, 32)), moment_of(32)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(32)

    def errors(search: str) -> torch.Tensor:
        dense = gptq.gptq(weight, moment, GptqSettings(2, 32, search=search)).dense
        difference = weight.double() - dense.double()
        return ((difference @ damped) * difference).sum(dim=1)

    assert bool((errors("feedback") <= errors("none") * (1 + 1e-6)).all())


@pytest.mark.parametrize("norm", [2.0, 2.4])
def test_searched_grid_is_no_worse_than_any_candidate(norm: float) -> None:
    values = matrices.heavy_tailed((6, 64)).double()
    importance = torch.linspace(0.1, 2, 64).double()

    def error(grid: group_grid.Grid) -> torch.Tensor:
        return ((values - grid.round(values)).abs().pow(norm) * importance).sum(dim=1)

    best = error(group_grid.searched_grid(values, 2, importance, norm))
    for grid in group_grid.candidate_grids(values, 2):
        assert bool((best <= error(grid) + 1e-12).all())


def test_stored_bits_are_counted() -> None:
    weight, moment = matrices.gaussian((10, 130)), moment_of(130)
    groups = 3  # two of 64 columns and one of two
    plain = gptq.gptq(weight, moment, GptqSettings(3))
    assert plain.stored_bits == 10 * 130 * 3 + 10 * groups * (16 + 3)
    ordered = gptq.gptq(weight, moment, GptqSettings(3, order="activation"))
    assert ordered.stored_bits == plain.stored_bits + 130 * 2
    static = gptq.gptq(weight, moment, GptqSettings(3, order="static"))
    assert static.stored_bits == plain.stored_bits


def test_every_value_lies_on_its_groups_grid() -> None:
    coded = gptq.gptq(matrices.gaussian((8, 64)), moment_of(64), gptq.strong(2)).dense
    assert all(len(row.unique()) <= 4 for row in coded)


def test_silent_channels_get_zero_and_singular_moments_are_damped() -> None:
    moment = torch.zeros(16, 16)
    moment[:8, :8] = 1.0  # rank one
    coded = gptq.gptq(matrices.gaussian((4, 16)), moment, GptqSettings(4, group=8)).dense
    assert bool(coded.isfinite().all())
    assert not bool(coded[:, 8:].any())


def test_settings_and_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="order 'sideways'"):
        GptqSettings(2, order="sideways")
    with pytest.raises(ValueError, match='search="weighted"'):
        GptqSettings(2, order="static", search="feedback")
    with pytest.raises(ValueError, match=r"shape \(3, 3\), expected \(4, 4\)"):
        gptq.gptq(torch.ones(2, 4), torch.eye(3), GptqSettings(2))


def test_awq_like_is_rounding_of_scaled_columns() -> None:
    weight, moment = matrices.gaussian((12, 64)), moment_of(64)
    coded = activation_aware.activation_aware(weight, moment, 3)
    assert coded.stored_bits == baselines.round_to_nearest(weight, 3).stored_bits + 16 * 64
    even = activation_aware.activation_aware(weight, 7 * torch.eye(64), 3)
    assert torch.allclose(even.dense, baselines.round_to_nearest(weight, 3).dense)
    active = moment.diagonal().argmax()
    rounded = baselines.round_to_nearest(weight, 3).dense
    lost = (weight - coded.dense)[:, active].square().sum()
    assert float(lost) < float((weight - rounded)[:, active].square().sum())


def test_awq_search_is_no_worse_than_any_power() -> None:
    weight, moment = matrices.gaussian((12, 64)), moment_of(64)
    best = activation_aware.searched_activation_aware(weight, moment, 2)
    for alpha in (0.0, 0.5, 1.0):
        one = activation_aware.activation_aware(weight, moment, 2, alpha=alpha)
        assert output_error(weight, best.dense, moment) <= output_error(weight, one.dense, moment)

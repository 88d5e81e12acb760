"""The pyramid of visual tokens: every level against the equations, written out in float64."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch

from llava_fa.fmvr import FrequencyModulatedRestoration, VisualTokenPyramid, pools_of
from llava_fa.fmvr.restoration import VARIANTS, RestorationBranch

Array = npt.NDArray[np.float64]
RESTORED = VARIANTS[:-1]


def window(x: Array, row: int, column: int) -> Array:
    """The 3 × 3 neighbours that exist, (B, C, neighbours)."""
    rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
    return x[:, :, rows, columns].reshape(*x.shape[:2], -1)


def filtered(x: Array, reduce: str) -> Array:
    """A 3 × 3 maximum or mean, place by place."""
    out = np.empty_like(x)
    for row, column in itertools.product(range(x.shape[2]), range(x.shape[3])):
        out[:, :, row, column] = getattr(window(x, row, column), reduce)(axis=-1)
    return out


def branch(weights: RestorationBranch, x: Array, low: Array, high: Array) -> Array:
    w_l, w_h, a, b = (
        weight.detach().double().numpy()[None, :, None, None]
        for weight in (
            weights.low_weight,
            weights.high_weight,
            weights.product_weight,
            weights.identity_weight,
        )
    )
    return np.asarray(w_l * low + (1 + w_h) * high + a * (x * high) + b * x)


def restoration(module: FrequencyModulatedRestoration, x: Array) -> Array:
    """Section 10 of the design."""
    total = np.zeros_like(x)
    if module.average is not None:
        low = x.mean(axis=(2, 3), keepdims=True)
        if module.variant == "local_average":
            low = filtered(x, "mean")
        total += branch(module.average, x, low, x - low) + x
    if module.max is not None:
        high = filtered(x, "max")
        total += branch(module.max, x, x - high, high)
    return total


def pooled(x: Array, size: int) -> Array:
    """Means of windows, those that stick out of what exists."""
    height, width = x.shape[2:]
    out = np.empty((*x.shape[:2], -(-height // size), -(-width // size)))
    for row, column in itertools.product(range(out.shape[2]), range(out.shape[3])):
        part = x[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
        out[:, :, row, column] = part.mean(axis=(2, 3))
    return out


def written_out(pyramid: VisualTokenPyramid, tokens: Array, grid: tuple[int, int]) -> list[Array]:
    x = tokens.transpose(0, 2, 1).reshape(len(tokens), -1, *grid)
    levels = [tokens]
    for level, size in enumerate(pyramid.shape.pools):
        x = pooled(x, size)
        if level < len(pyramid.restorations):
            x = restoration(pyramid.restorations[level], x) + x
        levels.append(x.reshape(*x.shape[:2], -1).transpose(0, 2, 1))
    return levels


def randomized(module: torch.nn.Module, seed: int = 0, size: float = 0.3) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return module


def grid_of(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=dtype)


def largest_difference(found: torch.Tensor, expected: Array) -> float:
    """Relative to the largest value."""
    difference = np.abs(found.detach().double().numpy() - expected)
    return float(difference.max() / np.abs(expected).max())


class TestRestoration:
    @pytest.mark.parametrize("variant", RESTORED)
    @pytest.mark.parametrize("grid", [(12, 12), (6, 6), (3, 5), (1, 1)])
    def test_equals_the_equations(self, variant: str, grid: tuple[int, int]) -> None:
        module = randomized(FrequencyModulatedRestoration(7, variant).double())
        x = grid_of(2, 7, *grid)
        assert largest_difference(module(x), restoration(module, x.numpy())) < 1e-14

    @pytest.mark.parametrize("variant", RESTORED)
    def test_float32_is_within_a_millionth(self, variant: str) -> None:
        module = randomized(FrequencyModulatedRestoration(7, variant))
        x = grid_of(2, 7, 6, 6, dtype=torch.float32)
        assert largest_difference(module(x), restoration(module, x.double().numpy())) < 1e-6

    def test_begins_as_zeros_and_ones_give_it(self) -> None:
        x = grid_of(2, 3, 4, 4)
        mean = x.mean(dim=(2, 3), keepdim=True)
        highest = torch.as_tensor(filtered(x.numpy(), "max"))
        # average branch: (x - mean) + x, plus x; max branch: maximum + x
        expected = (x - mean) + x + x + highest + x
        found = FrequencyModulatedRestoration(3).double()(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)

    def test_eight_weights_per_channel(self) -> None:
        counts = {
            variant: sum(p.numel() for p in FrequencyModulatedRestoration(5, variant).parameters())
            for variant in RESTORED
        }
        assert counts == {"both": 40, "average": 20, "max": 20, "local_average": 40}

    @pytest.mark.parametrize("variant", RESTORED)
    def test_gradients(self, variant: str) -> None:
        module = randomized(FrequencyModulatedRestoration(2, variant).double())
        x = grid_of(1, 2, 3, 4).requires_grad_()
        weights = list(module.parameters())

        def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            named = dict(zip(dict(module.named_parameters()), values, strict=True))
            out = torch.func.functional_call(module, named, (x,))
            return torch.as_tensor(out)

        assert torch.autograd.gradcheck(call, (x, *weights))

    @pytest.mark.parametrize("variant", ["none", "median"])
    def test_other_variants_are_refused(self, variant: str) -> None:
        with pytest.raises(ValueError, match=f"variant is '{variant}'"):
            FrequencyModulatedRestoration(4, variant)


class TestPyramid:
    @pytest.mark.parametrize(("side", "pools"), [(24, (2, 2, 2, 3)), (12, (2, 2, 3)), (12, (2, 3))])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_square_grids_equal_the_equations(
        self, side: int, pools: tuple[int, ...], variant: str
    ) -> None:
        pyramid = randomized(VisualTokenPyramid(5, pools, side, variant).double())
        assert isinstance(pyramid, VisualTokenPyramid)
        tokens = grid_of(2, side * side, 5)
        levels = pyramid.levels(tokens)
        expected = written_out(pyramid, tokens.numpy(), (side, side))
        assert [level.shape[1] for level in levels] == list(pyramid.shape.scales)
        for found, wanted in zip(levels, expected, strict=True):
            assert largest_difference(found, wanted) < 1e-13

    @pytest.mark.parametrize("grid", [(7, 10), (8, 8), (1, 5), (3, 1)])
    def test_grids_of_any_shape_equal_the_equations(self, grid: tuple[int, int]) -> None:
        pyramid = randomized(VisualTokenPyramid(3, (2, 2, 3)).double())
        assert isinstance(pyramid, VisualTokenPyramid)
        tokens = grid_of(2, grid[0] * grid[1], 3)
        levels = pyramid.levels(tokens, grid)
        assert [level.shape[1] for level in levels] == list(pyramid.shape.token_counts(grid))
        for found, wanted in zip(levels, written_out(pyramid, tokens.numpy(), grid), strict=True):
            assert largest_difference(found, wanted) < 1e-13

    def test_scales_and_restorations(self) -> None:
        large = VisualTokenPyramid(2, (2, 2, 2, 3), 24)
        assert large.shape.scales == (576, 144, 36, 9, 1)
        assert len(large.restorations) == 3  # nothing is restored at a single token
        assert len(VisualTokenPyramid(2, (2, 2), 24).restorations) == 2
        assert len(VisualTokenPyramid(2, (2, 2)).restorations) == 2
        assert len(VisualTokenPyramid(2, (2, 2, 3), 12, "none").restorations) == 0

    def test_edges_round_up(self) -> None:
        assert VisualTokenPyramid(2, (2, 2, 3)).shape.grids((7, 10)) == [
            (7, 10),
            (4, 5),
            (2, 3),
            (1, 1),
        ]

    def test_every_image_has_its_scale(self) -> None:
        pyramid = randomized(VisualTokenPyramid(3, (2, 2, 3), 12))
        assert isinstance(pyramid, VisualTokenPyramid)
        tokens = grid_of(4, 144, 3, dtype=torch.float32)
        found = pyramid(tokens, (36, 144, 1, 9))
        assert [len(part) for part in found] == [36, 144, 1, 9]
        levels = pyramid.levels(tokens)
        for image, level in enumerate((1, 0, 3, 2)):
            torch.testing.assert_close(found[image], levels[level][image])

    def test_full_scale_is_the_input_itself(self) -> None:
        tokens = grid_of(2, 144, 3)
        for found, given in zip(
            VisualTokenPyramid(3, (2, 2, 3), 12)(tokens, 144), tokens, strict=True
        ):
            assert found.data_ptr() == given.data_ptr()

    def test_a_limit_names_a_level_of_any_shape(self) -> None:
        pyramid = VisualTokenPyramid(2, (2, 2, 3))  # 70, 20, 6, 1 tokens
        assert [pyramid.shape.level_of(n, (7, 10)) for n in (100, 70, 69, 20, 19, 6, 5, 1)] == [
            0, 0, 1, 1, 2, 2, 3, 3,
        ]  # fmt: skip


class TestPools:
    def test_prime_factors_of_the_side(self) -> None:
        assert [pools_of(side) for side in (24, 12, 27, 16)] == [
            (2, 2, 2, 3), (2, 2, 3), (3, 3, 3), (2, 2, 2, 2),
        ]  # fmt: skip

    def test_of_scales_in_any_order(self) -> None:
        assert pools_of(24, (1, 9, 36, 144, 576)) == (2, 2, 2, 3)
        assert pools_of(24, (36,)) == (4,)
        assert pools_of(12, (9, 144)) == (4,)

    @pytest.mark.parametrize(
        ("scales", "message"),
        [
            ((100,), "scale 100 cannot follow 576"),
            ((35,), "scale 35 cannot follow"),
            ((144, 64), "scale 64 cannot follow 144"),
            ((0,), "scale 0 cannot follow"),
            ((576,), "expected at least one below 576"),
            ((), "expected at least one below 576"),
        ],
    )
    def test_of_scales_that_a_grid_does_not_have(
        self, scales: tuple[int, ...], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            pools_of(24, scales)


class TestBadInput:
    def test_a_scale_that_the_grid_does_not_have(self) -> None:
        with pytest.raises(
            ValueError, match=r"is 35; the 12 x 12 grid has the scales 1, 9, 36, 144"
        ):
            VisualTokenPyramid(2, (2, 2, 3), 12)(torch.zeros(1, 144, 2), 35)

    def test_a_limit_below_the_coarsest_level(self) -> None:
        with pytest.raises(ValueError, match="coarsest level of a 40 x 40 grid has 100 tokens"):
            VisualTokenPyramid(2, (2, 2)).shape.level_of(99, (40, 40))

    def test_a_grid_without_a_rule(self) -> None:
        with pytest.raises(ValueError, match=r"grid is 8 x 18.*side=None for grids of any shape"):
            VisualTokenPyramid(2, (2, 2, 3), 12)(torch.zeros(1, 144, 2), 36, (8, 18))

    def test_any_shape_without_its_shape(self) -> None:
        with pytest.raises(ValueError, match="need their height and width"):
            VisualTokenPyramid(2, (2,))(torch.zeros(1, 144, 2), 36)
        with pytest.raises(ValueError, match="no common scales"):
            _ = VisualTokenPyramid(2, (2,)).shape.scales

    def test_tokens_that_are_not_the_grid(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(1, 145, 2\), expected .*12 x 12 = 144"):
            VisualTokenPyramid(2, (2, 2, 3), 12)(torch.zeros(1, 145, 2), 36)

    def test_as_many_scales_as_images(self) -> None:
        with pytest.raises(ValueError, match="2 scales were given for 3 images"):
            VisualTokenPyramid(2, (2, 2, 3), 12)(torch.zeros(3, 144, 2), (36, 9))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((4, (2, 5), 12), r"pools \(2, 5\) do not divide a grid of 12 x 12"),
            ((4, (), 12), "expected at least one"),
            ((4, (1, 2), 12), "each at least 2"),
            ((0, (2,), 12), "channels is 0"),
            ((4, (2,), 12, "sharp"), "variant is 'sharp'"),
        ],
    )
    def test_settings(self, arguments: tuple[object, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VisualTokenPyramid(*arguments)

"""Accumulators of second moments: precision, any split of the rows, half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calibration_toys import rows
from llava_fa.moments import MeanSquares, SecondMoment


class TestAccumulators:
    @pytest.mark.parametrize("size", [1, 5, 1500])
    def test_second_moment_is_the_mean_of_outer_products(self, size: int) -> None:
        values = rows(2500, size=size)
        moment = SecondMoment(size)
        for part in values.split([1, 700, 1799]):
            moment.add(part)
        assert moment.count == 2500
        expected = values.double().T @ values.double() / 2500
        found = moment.mean()
        assert found.dtype == torch.float32
        assert torch.equal(found, found.T)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    def test_many_blocks_lose_nothing(self) -> None:
        """A float32 sum would stall at 2²⁴ times the increment; here it keeps its last digits."""
        moment = SecondMoment(1)
        moment.add(torch.full((1024, 1), 4096.0))
        for _ in range(300):
            moment.add(torch.full((1024, 1), 1.0))
        expected = (1024 * 4096.0**2 + 300 * 1024) / (301 * 1024)
        assert moment.mean().item() == pytest.approx(expected, rel=1e-7)

    def test_mean_squares_over_all_rows(self) -> None:
        values = torch.randn(2000, 5)
        moments = MeanSquares(5)
        moments.add(values[:1234])
        moments.add(values[1234:])
        assert moments.count == 2000
        torch.testing.assert_close(moments.mean(), values.double().square().mean(0))

    @pytest.mark.parametrize("kind", [MeanSquares, SecondMoment])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_rows_stay_as_they_are(self, kind: Any, dtype: torch.dtype) -> None:
        values = rows(5).to(dtype)
        before = values.clone()
        kind(6).add(values)
        assert torch.equal(values, before)

    @pytest.mark.parametrize("kind", [MeanSquares, SecondMoment])
    def test_half_precision_does_not_overflow(self, kind: Any) -> None:
        moments = kind(1)
        moments.add(torch.full((4, 1), 60000.0, dtype=torch.float16))
        assert moments.mean().item() == pytest.approx(60000.0**2, rel=1e-3)

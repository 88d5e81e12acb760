"""Verdicts follow from the figures, and tables show them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import support, verdicts


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-2.0, -1.0), verdicts.CONFIRMED),
        ((1.0, 2.0), verdicts.REFUTED),
        ((-1.0, 1.0), verdicts.NOT_SEPARABLE),
        ((-1.0, 0.0), verdicts.NOT_SEPARABLE),
    ],
)
def test_a_claim_of_lower_needs_an_interval_off_the_border(
    interval: tuple[float, float], expected: str
) -> None:
    assert verdicts.is_lower(interval, 0.0) == expected


def test_mean_ratio_recovers_a_constant_factor() -> None:
    other = np.exp(np.random.default_rng(1).standard_normal(30))
    ratio, (low, high) = verdicts.mean_ratio(list(0.8 * other), list(other))
    assert ratio == pytest.approx(0.8)
    assert low == pytest.approx(0.8)
    assert high == pytest.approx(0.8)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        noise = rng.normal(0.0, 0.1, 40)
        _, (low, high) = verdicts.mean_ratio(list(np.exp(noise)), [1.0] * 40)
        covered += low <= 1.0 <= high
    # Binomial with 200 trials at 0.93 to 0.95: 176 is 3 deviations below.
    assert covered >= 176


def test_rows_of_errors_are_judged_by_their_ratio() -> None:
    rng = np.random.default_rng(3)
    first, second = 0.1 + 0.001 * rng.random(20), 0.2 + 0.001 * rng.random(20)
    assert verdicts.error_row("lower", first, second)["verdict"] == verdicts.CONFIRMED
    assert verdicts.error_row("lower", second, first)["verdict"] == verdicts.REFUTED


def test_markdown_aligns_rows_of_different_keys() -> None:
    table = support.markdown([{"a": 1, "b": 0.123456}, {"a": 2, "c": True}])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1:-1] == [" a ", " b      ", " c   "]
    assert "0.1235" in lines[2]
    assert "yes" in lines[3]


def test_publish_writes_valid_json_and_a_table(tmp_path: Path) -> None:
    path = tmp_path / "name.json"
    support.publish("name", path, {"Heading": [{"x": float("nan")}]}, {"figure": (1, 2)})
    record = json.loads(path.read_text())
    assert record["tables"]["Heading"] == [{"x": None}]
    assert record["figure"] == [1, 2]
    assert {"processor", "cores", "packages"} <= set(record["machine"])
    assert "## Heading" in path.with_suffix(".md").read_text()

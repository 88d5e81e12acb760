"""CompressionConfig: validation, immutability, JSON round trip."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_fa import CompressionConfig


@given(
    bits=st.integers(2, 10).map(lambda b: b / 2),
    codec=st.sampled_from(["ring", "product", "uniform"]),
    calibration=st.sampled_from(["hessian", "diagonal"]),
    state_bits=st.integers(8, 16),
    rank=st.integers(0, 4096),
    factor_bits=st.sampled_from([1, 5, 8, 10, 16]),
    odc=st.sampled_from(["spatial", "spectral", "none"]),
    signs=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)
def test_json_round_trip(**options):
    config = CompressionConfig(**options)
    assert CompressionConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json()) == config.to_dict()
    assert config.code_bits == 2 * options["bits"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0.5}, "bits is 0.5, expected 1 to 5"),
        ({"bits": 5.5}, "steps of one half"),
        ({"bits": 3.25}, "steps of one half"),
        ({"bits": float("nan")}, "expected 1 to 5"),
        ({"codec": "hexagonal"}, "codec is 'hexagonal', expected one of"),
        ({"odc": "full"}, "odc is 'full'"),
        ({"codec": "trellis", "bits": 4.5}, "bits is 4.5, expected at most 4 for the trellis"),
        ({"calibration": "full"}, "calibration is 'full'"),
        ({"state_bits": 7}, "state_bits is 7, expected 8 to 16"),
        ({"rank": -1}, "rank is -1"),
        ({"factor_bits": 12}, "factor_bits is 12, expected 1 to 10, or 16"),
        ({"max_alternations": 0}, "max_alternations is 0"),
        ({"seed": -5}, "seed is -5"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        CompressionConfig(**options)


@pytest.mark.parametrize(
    "options",
    [{"bits": "4"}, {"bits": True}, {"rank": 1.0}, {"signs": 1}, {"codec": 3}, {"seed": None}],
)
def test_wrong_types_are_refused(options):
    with pytest.raises(TypeError):
        CompressionConfig(**options)


def test_it_is_frozen_and_hashable():
    config: Any = CompressionConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.bits = 2
    assert hash(config) == hash(CompressionConfig())


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="unknown options \\['bitz'\\]"):
        CompressionConfig.from_dict({"bitz": 4})
    with pytest.raises(ValueError, match="unknown options"):
        CompressionConfig().replace(colour="red")
    with pytest.raises(ValueError, match="expected a JSON object"):
        CompressionConfig.from_json("[1]")


def test_replace_changes_only_what_it_names():
    assert CompressionConfig(rank=3).replace(bits=2) == CompressionConfig(bits=2, rank=3)

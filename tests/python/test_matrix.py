"""Matrix level: compression on all kinds of weights, and what is stored."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import llava_fa
import reference
from llava_fa import (
    CompressedMatrix,
    CompressionConfig,
    FormatError,
    MatrixSpec,
    NonFiniteError,
    _core,
    compress_matrix,
)
from weights import gaussian, seeds, shapes


def adversarial_weights():
    rng = np.random.default_rng(3)
    base = gaussian((60, 44), 4)
    outlier = base.copy()
    outlier[7, 9] = 80.0
    smooth = np.sin(0.1 * np.add.outer(np.arange(60.0), np.arange(44.0)))
    return {
        "gaussian": base,
        "heavy tails": rng.standard_t(2.5, (60, 44)),
        "rank one": np.outer(gaussian(60, 5), gaussian(44, 6)),
        "constant": np.full((60, 44), 0.3),
        "smooth": smooth,
        "one outlier": outlier,
        "one entry": np.eye(60, 44) * (np.arange(60) == 3)[:, None],
        "zero columns": base * (np.arange(44) % 3 > 0),
        "huge": base * 1e30,
        "tiny": base * 1e-30,
        "denormal": base * 1e-39,
        "spread columns": base * np.logspace(-3, 3, 44),
    }


@pytest.mark.parametrize("name", adversarial_weights())
@pytest.mark.parametrize("rank", [0, 3])
def test_any_weight_survives_at_five_bits(name, rank):
    weight = adversarial_weights()[name].astype(np.float32)
    matrix = compress_matrix(weight, CompressionConfig(bits=5, rank=rank))
    assert np.isfinite(matrix.dense()).all()
    # 10 bits per complex entry distort a Gaussian by 0.002; rows of 44 entries are less Gaussian.
    assert matrix.relative_error(weight) < 0.01


def test_a_zero_matrix_stays_zero():
    matrix = compress_matrix(np.zeros((9, 6), np.float32), CompressionConfig(rank=2))
    assert not matrix.dense().any()
    assert matrix.relative_error(np.zeros((9, 6))) == 0.0


@settings(deadline=None, max_examples=40)
@given(
    shape=shapes,
    seed=seeds,
    half_bits=st.integers(2, 10),
    codec=st.sampled_from(["ring", "product", "uniform", "trellis"]),
    state_bits=st.integers(8, 12),
    rank=st.integers(0, 3),
    factor_bits=st.sampled_from([4, 8, 16]),
    signs=st.booleans(),
)
def test_stored_tensors_alone_determine_the_weight(
    shape, seed, half_bits, codec, state_bits, rank, factor_bits, signs
):
    assume(codec != "trellis" or half_bits <= 8)
    rank = min(rank, shape[0] // 2 + 1, shape[1])
    weight = gaussian(shape, seed) * np.logspace(-1, 1, shape[1], dtype=np.float32)
    config = CompressionConfig(
        bits=half_bits / 2,
        codec=codec,
        state_bits=state_bits,
        rank=rank,
        factor_bits=factor_bits,
        signs=signs,
        seed=seed,
    )
    matrix = compress_matrix(weight, config)
    state = matrix.state_dict()
    tables = {}
    if codec != "trellis":
        tables[half_bits] = reference.points(llava_fa.constellation(codec, half_bits)["rings"])
    if factor_bits != 16:
        tables[-factor_bits] = reference.points(
            llava_fa.constellation("ring", factor_bits)["rings"]
        )
    expected = reference.decode({name: t.numpy() for name, t in state.items()}, tables)
    assert matrix.code_planes().shape == (2, shape[0] // 2 + 1, shape[1])
    np.testing.assert_allclose(matrix.dense(), expected, atol=3e-6 * np.abs(expected).max())
    loaded = CompressedMatrix.from_state_dict(state)
    assert torch.equal(loaded.dense(), torch.from_numpy(matrix.dense()))
    assert matrix.nbytes == sum(t.numel() * t.element_size() for t in state.values())
    assert matrix.nbytes == matrix.spec.nbytes
    assert matrix.bits_per_weight == 8 * matrix.nbytes / weight.size
    assert {k: (t.dtype, tuple(t.shape)) for k, t in state.items()} == matrix.spec.tensors()
    assert MatrixSpec.from_dict(matrix.spec.to_dict()) == matrix.spec


@settings(deadline=None, max_examples=30)
@given(shape=shapes, seed=seeds, rank=st.integers(0, 2), batch=st.integers(0, 5))
def test_matmul_is_the_dense_product(shape, seed, rank, batch):
    rank = min(rank, shape[0] // 2 + 1, shape[1])
    matrix = compress_matrix(gaussian(shape, seed), CompressionConfig(bits=3, rank=rank))
    x = gaussian((batch, shape[1]), seed + 1)
    expected = x.astype(np.float64) @ matrix.dense().astype(np.float64).T
    result = matrix.matmul(x)
    assert result.shape == expected.shape
    assert np.linalg.norm(result - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("codec", ["ring", "trellis"])
@pytest.mark.parametrize("bits", [1, 1.5, 2, 3, 4])
def test_half_precision_is_finer_than_bfloat16(codec, bits):
    matrix = compress_matrix(gaussian((256, 192)), CompressionConfig(bits=bits, codec=codec))
    x = gaussian((3, 192))
    expected = x.astype(np.float64) @ matrix.dense().astype(np.float64).T
    difference = matrix.matmul(x, precision="half") - expected
    rounding = torch.from_numpy(expected).bfloat16().double().numpy() - expected
    assert np.linalg.norm(difference) <= np.linalg.norm(rounding)
    with pytest.raises(ValueError, match='expected "single" or "half"'):
        matrix.matmul(x, precision="double")


def test_matmul_takes_leading_dimensions_and_refuses_other_widths():
    matrix = compress_matrix(gaussian((6, 10)))
    x = torch.randn(2, 3, 10, dtype=torch.bfloat16)
    assert matrix.matmul(x).shape == (2, 3, 6)
    assert matrix.matmul(x[0, 0]).shape == (6,)
    with pytest.raises(ValueError, match="expected \\(\\.\\.\\., 10\\)"):
        matrix.matmul(x[..., :9])


def test_more_bits_and_more_rank_lower_the_error():
    weight = gaussian((96, 80), 7)
    errors = [
        compress_matrix(weight, CompressionConfig(bits=b / 2)).relative_error(weight)
        for b in range(2, 11)
    ]
    assert all(a > b for a, b in itertools.pairwise(errors))
    by_rank = [
        compress_matrix(weight, CompressionConfig(bits=2, rank=r)).relative_error(weight)
        for r in (0, 4, 16)
    ]
    assert by_rank[0] > by_rank[1] > by_rank[2]


def test_joint_beats_sequential_and_reports_a_falling_objective():
    weight = gaussian((96, 80), 8)
    config = CompressionConfig(bits=2, rank=8)
    joint = compress_matrix(weight, config)
    sequential = compress_matrix(weight, config.replace(max_alternations=1))
    assert joint.relative_error(weight) < sequential.relative_error(weight)
    assert list(joint.objective) == sorted(joint.objective, reverse=True)
    assert joint.objective[-1] == pytest.approx(joint.relative_error(weight), rel=2e-2)


def test_second_moments_lower_the_output_error():
    rng = np.random.default_rng(9)
    weight = gaussian((128, 96), 9)
    x = rng.standard_normal((2000, 96)) * np.logspace(-1, 1, 96)
    train, held_out = x[:1000], x[1000:]

    def output_error(matrix):
        return np.linalg.norm(held_out @ (matrix.dense() - weight).T)

    config = CompressionConfig(bits=2, calibration="diagonal")
    vector = (train**2).mean(0)
    with_data = compress_matrix(weight, config, input_second_moment=vector)
    full = compress_matrix(weight, config, input_second_moment=train.T @ train / len(train))
    without = compress_matrix(weight, config)
    assert output_error(with_data) < 0.8 * output_error(without)
    assert torch.equal(with_data.state_dict()["codes"], full.state_dict()["codes"])


def test_output_moments_protect_important_outputs():
    weight = gaussian((128, 96), 10)
    importance = np.where(np.arange(128) < 16, 100.0, 1.0)
    plain = compress_matrix(weight, CompressionConfig(bits=2, odc="none"))
    scaled = compress_matrix(weight, CompressionConfig(bits=2), output_second_moment=importance)

    def weighted(matrix):
        return float(np.sum(importance[:, None] * (matrix.dense() - weight) ** 2))

    assert scaled.spec.channel_scale_out
    assert weighted(scaled) < 0.8 * weighted(plain)


def test_spectral_odc_lowers_the_output_error_on_smooth_inputs():
    rng = np.random.default_rng(11)
    weight = gaussian((64, 48), 11)
    # Smooth inputs: power falls with the frequency along the channels.
    power = 1.0 / (1.0 + np.arange(25.0) ** 2)
    x = np.fft.irfft(np.fft.rfft(rng.standard_normal((3000, 48)), axis=1) * power, n=48, axis=1)
    covariance = x.T @ x / len(x)

    def output_error(odc):
        config = CompressionConfig(calibration="diagonal", bits=1, rank=6, odc=odc, signs=False)
        matrix = compress_matrix(weight, config, input_second_moment=covariance)
        return np.linalg.norm(x @ (matrix.dense() - weight).T)

    assert output_error("spectral") < output_error("none")


def test_non_finite_weights_and_moments_are_named():
    weight = gaussian((5, 4))
    weight[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"weight\[2, 3\] is -?nan"):
        compress_matrix(weight)
    with pytest.raises(NonFiniteError, match=r"input_second_moment\[1\] is inf"):
        compress_matrix(gaussian((5, 3)), input_second_moment=np.array([1, np.inf, 1]))
    with pytest.raises(ValueError, match=r"input_second_moment\[0\] is -1"):
        compress_matrix(gaussian((5, 3)), input_second_moment=np.array([-1.0, 1, 1]))
    with pytest.raises(ValueError, match="expected a vector or a square matrix"):
        compress_matrix(gaussian((5, 3)), input_second_moment=np.ones((3, 2)))
    with pytest.raises(ValueError, match="has length 4, expected 3"):
        compress_matrix(gaussian((5, 3)), input_second_moment=np.ones(4))


def test_a_rank_above_the_possible_is_refused():
    with pytest.raises(ValueError, match="rank is 5, expected 0 to 4"):
        compress_matrix(gaussian((6, 9)), CompressionConfig(rank=5))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bytes_do_not_depend_on_threads(threads):
    # Large enough that the core really shares the work out.
    weight = gaussian((1500, 900), 12)
    config = CompressionConfig(bits=2.5, rank=6)
    expected = compress_matrix(weight, config).state_dict()
    _core.set_num_threads(threads)
    try:
        result = compress_matrix(weight, config).state_dict()
    finally:
        _core.set_num_threads(0)
    assert all(torch.equal(expected[name], result[name]) for name in expected)


def test_seed_changes_signs_and_bytes():
    weight = gaussian((40, 30), 13)
    a, b = (compress_matrix(weight, CompressionConfig(seed=s)).state_dict() for s in (0, 1))
    assert not torch.equal(a["codes"], b["codes"])


def test_state_used_in_place_is_not_copied_and_stays_alive():
    state = compress_matrix(gaussian((20, 13)), CompressionConfig(bits=2.5)).state_dict()
    expected = CompressedMatrix.from_state_dict(state).dense()
    matrix = CompressedMatrix.from_state_dict(dict(state), in_place=True)
    state["row_scale"].mul_(2)
    torch.testing.assert_close(matrix.dense(), 2 * expected, rtol=1e-6, atol=0)
    del state
    torch.testing.assert_close(matrix.dense(), 2 * expected, rtol=1e-6, atol=0)


def test_corrupted_state_is_refused_by_name():
    state = compress_matrix(gaussian((20, 13)), CompressionConfig(bits=2.5)).state_dict()
    for name in state:
        with pytest.raises(FormatError, match=f'"{name}" is missing'):
            CompressedMatrix.from_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(FormatError, match='tensor "codes" has'):
        CompressedMatrix.from_state_dict({**state, "codes": state["codes"][:-1]})
    with pytest.raises(FormatError, match='tensor "codes" is'):
        CompressedMatrix.from_state_dict({**state, "codes": state["codes"].reshape(-1)})
    with pytest.raises(FormatError, match="row_scale"):
        CompressedMatrix.from_state_dict({**state, "row_scale": state["row_scale"] * torch.nan})
    header = state["header"].clone()
    header[0] = 4
    with pytest.raises(FormatError, match="install a newer llava-fa"):
        CompressedMatrix.from_state_dict({**state, "header": header})


def test_matrix_specifications_are_checked():
    spec = compress_matrix(gaussian((20, 13))).spec.to_dict()
    with pytest.raises(FormatError, match="fields"):
        MatrixSpec.from_dict({**spec, "surprise": 1})
    with pytest.raises(FormatError, match="rank is 100"):
        MatrixSpec.from_dict({**spec, "rank": 100})
    with pytest.raises(FormatError, match="inconsistent"):
        MatrixSpec.from_dict({**spec, "shape": "large"})
    for shape in ([], [64], [64, 64, 7], [True, 3], [2.5, 3], None):
        with pytest.raises(FormatError, match="inconsistent matrix specification"):
            MatrixSpec.from_dict({**spec, "shape": shape})


VARIANT_SCRIPT = """
import numpy as np, llava_fa
from llava_fa import _core, CompressionConfig
weight = np.random.default_rng(0).standard_normal((130, 90)).astype(np.float32)
matrix = llava_fa.compress_matrix(weight, CompressionConfig(bits=3, rank=4))
print(_core.cpu_variant(), matrix.relative_error(weight))
"""


def run_variant(variant):
    return subprocess.run(
        [sys.executable, "-c", VARIANT_SCRIPT],
        env={**os.environ, "LLAVA_FA_CPU": variant},
        capture_output=True,
        text=True,
        check=False,
    )


def test_variants_agree_and_unknown_ones_are_refused():
    portable = run_variant("baseline")
    assert portable.returncode == 0, portable.stderr
    name, error = portable.stdout.split()
    assert name == "baseline"
    best = run_variant(_core.cpu_variant())
    assert float(best.stdout.split()[1]) == pytest.approx(float(error), rel=2e-2)
    unknown = run_variant("z80")
    assert unknown.returncode != 0
    assert "expected x86-64-v4-gfni, x86-64-v4, x86-64-v3 or baseline" in unknown.stderr

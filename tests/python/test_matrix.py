"""Matrix level: stages against float64 references, compression on all kinds of weights."""

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

# 1, powers of two, primes with a dense transform, primes with the chirp transform, composites.
SIZES = [1, 2, 3, 5, 8, 13, 16, 31, 48, 64, 97, 100, 127, 151, 200, 269]
shapes = st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES))
seeds = st.integers(0, 2**32 - 1)


def gaussian(shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def relative(a, b):
    return float(np.linalg.norm(np.asarray(a, dtype=np.float64) - b) / np.linalg.norm(b))


# --- spectrum


@settings(deadline=None, max_examples=60)
@given(shape=shapes, seed=seeds)
def test_half_spectrum_is_the_definition_an_isometry_and_invertible(shape, seed):
    weight = gaussian(shape, seed)
    spectrum = llava_fa.half_spectrum(weight)
    expected = reference.half_spectrum(weight)
    assert spectrum.dtype == np.complex64
    assert np.linalg.norm(spectrum - expected) <= 1e-6 * np.linalg.norm(expected)
    assert np.linalg.norm(spectrum.astype(np.complex128)) == pytest.approx(
        np.linalg.norm(weight.astype(np.float64)), rel=1e-6
    )
    back = llava_fa.inverse_half_spectrum(spectrum, shape[0])
    assert relative(back, weight) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_and_stride_is_read_as_its_values(dtype):
    base = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)).to(dtype)
    for view in (base, base.T, base[::2, 1::3], base[:, 5:20], base[3:4], base.flip(0)):
        values = view.to(torch.float32).contiguous().numpy()
        expected = llava_fa.half_spectrum(values)
        assert torch.equal(llava_fa.half_spectrum(view), torch.from_numpy(expected))


def test_numpy_gives_numpy_and_torch_gives_torch():
    weight = gaussian((12, 10))
    assert isinstance(llava_fa.half_spectrum(weight), np.ndarray)
    parameter = torch.nn.Parameter(torch.from_numpy(weight))
    assert isinstance(llava_fa.half_spectrum(parameter), torch.Tensor)
    assert isinstance(compress_matrix(parameter).dense(), torch.Tensor)
    assert isinstance(compress_matrix(weight).dense(), np.ndarray)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((2, 2), np.int32), TypeError, "expected float16, bfloat16, float32 or float64"),
        (np.zeros(4, np.float32), ValueError, "weight has 1 dimensions, expected 2"),
        (np.zeros((0, 4), np.float32), ValueError, "expected at least"),
        ([[1.0]], TypeError, "expected a NumPy array or a torch tensor"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(bad, error, message):
    with pytest.raises(error, match=message):
        llava_fa.half_spectrum(bad)


# --- low rank


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("rank", [1, 7, 30])
def test_truncated_svd_is_close_to_optimal(decay, rank):
    rng = np.random.default_rng(1)
    left = np.linalg.qr(rng.standard_normal((90, 60)) + 1j * rng.standard_normal((90, 60)))[0]
    right = np.linalg.qr(rng.standard_normal((80, 60)) + 1j * rng.standard_normal((80, 60)))[0]
    values = decay ** np.arange(60.0)
    matrix = ((left * values) @ right.conj().T).astype(np.complex64)
    optimum = np.linalg.norm(values[rank:])
    u, s, vh = llava_fa.truncated_svd(matrix, rank)
    error = np.linalg.norm(matrix - (u * s) @ vh)
    # Below float32 resolution of the matrix there is nothing to compare.
    tolerance = 1.01 if decay == 1.0 else 1.001
    assert error <= tolerance * optimum + 2e-6 * np.linalg.norm(values)
    exact = llava_fa.truncated_svd(matrix, rank, exact=True)
    np.testing.assert_allclose(exact[1], values[:rank], rtol=1e-4, atol=2e-7 * 60)


@pytest.mark.parametrize(("code_bits", "state_bits"), [(1, 8), (4, 10), (5, 12), (8, 12)])
def test_trellis_codes_decode_to_the_points_that_the_format_states(code_bits, state_bits):
    rng = np.random.default_rng(3)
    shape = (300, 40)
    values = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    codes, scale = llava_fa.polar_encode(values, code_bits, "trellis", state_bits=state_bits)
    decoded = llava_fa.polar_decode(codes, scale, 40, code_bits, "trellis", state_bits=state_bits)
    unpacked = np.stack([reference.unpack_bits(row, 40, code_bits) for row in codes])
    points = reference.trellis_entries(unpacked, code_bits, state_bits)
    np.testing.assert_allclose(decoded, scale.astype(float)[:, None] * points, atol=1e-5)
    # between the Shannon limit and memoryless coding
    distortion = np.mean(np.abs(values - decoded) ** 2) / np.mean(np.abs(values) ** 2)
    memoryless = llava_fa.constellation("ring", code_bits)["design_distortion"]
    assert 2.0**-code_bits < distortion < memoryless


def test_svd_arguments_are_checked():
    matrix = llava_fa.half_spectrum(gaussian((8, 5)))
    with pytest.raises(ValueError, match="rank is 6, expected 1 to 5"):
        llava_fa.truncated_svd(matrix, 6)
    with pytest.raises(TypeError, match="expected complex64 or complex128"):
        llava_fa.truncated_svd(gaussian((8, 5)), 2)


# --- codec


@pytest.mark.parametrize("codec", ["ring", "product", "uniform"])
@pytest.mark.parametrize("code_bits", range(1, 11))
def test_codes_decode_to_the_points_that_the_format_states(codec, code_bits):
    rng = np.random.default_rng(2)
    values = (rng.standard_normal((3, 45)) + 1j * rng.standard_normal((3, 45))).astype(np.complex64)
    codes, scale = llava_fa.polar_encode(values, code_bits, codec)
    table = reference.points(llava_fa.constellation(codec, code_bits)["rings"])
    decoded = llava_fa.polar_decode(codes, scale, 45, code_bits, codec)
    for k in range(3):
        indices = reference.unpack_bits(codes[k], 45, code_bits)
        expected = float(scale[k]) * table[indices]
        np.testing.assert_allclose(decoded[k], expected, rtol=2e-6, atol=1e-6)


def test_decode_checks_the_sizes():
    values = llava_fa.half_spectrum(gaussian((8, 10)))
    codes, scale = llava_fa.polar_encode(values, 5)
    with pytest.raises(ValueError, match="codes have shape"):
        llava_fa.polar_decode(codes, scale, 11 * 8, 5)
    with pytest.raises(ValueError, match="code_bits is 11"):
        llava_fa.polar_encode(values, 11)
    with pytest.raises(ValueError, match="codec is"):
        llava_fa.polar_encode(values, 5, "square")


# --- whole matrices


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
    header[0] = 2
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
    assert "expected x86-64-v4, x86-64-v3 or baseline" in unknown.stderr

"""Each stage between a weight and its codes against float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import llava_fa
import reference
from llava_fa import compress_matrix
from weights import gaussian, seeds, shapes


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
    expected = scale.astype(float)[:, None] * table[reference.unpack_codes(codes, 45, code_bits)]
    np.testing.assert_allclose(decoded, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("cols", [40, 41])
@pytest.mark.parametrize(("code_bits", "state_bits"), [(1, 8), (4, 10), (5, 12), (8, 12)])
def test_trellis_codes_decode_to_the_points_that_the_format_states(code_bits, state_bits, cols):
    rng = np.random.default_rng(3)
    shape = (300, cols)
    values = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    codes, scale = llava_fa.polar_encode(values, code_bits, "trellis", state_bits=state_bits)
    decoded = llava_fa.polar_decode(codes, scale, cols, code_bits, "trellis", state_bits=state_bits)
    unpacked = reference.unpack_codes(codes, cols, code_bits)
    points = reference.trellis_entries(unpacked, code_bits, state_bits)
    np.testing.assert_allclose(decoded, scale.astype(float)[:, None] * points, atol=1e-5)
    # between the Shannon limit and memoryless coding
    distortion = np.mean(np.abs(values - decoded) ** 2) / np.mean(np.abs(values) ** 2)
    memoryless = llava_fa.constellation("ring", code_bits)["design_distortion"]
    assert 2.0**-code_bits < distortion < memoryless


@pytest.mark.parametrize("code_bits", range(1, 9))
@pytest.mark.parametrize("state_bits", [8, 13, 16])
def test_any_trellis_codes_decode_to_the_documented_points(code_bits, state_bits):
    rng = np.random.default_rng(5)
    packed = rng.integers(0, 256, (300, 8 * code_bits), dtype=np.uint8)
    scale = np.ones(300, dtype=np.float16)
    decoded = llava_fa.polar_decode(packed, scale, 64, code_bits, "trellis", state_bits=state_bits)
    codes = reference.unpack_codes(packed, 64, code_bits)
    np.testing.assert_array_equal(decoded, reference.trellis_entries(codes, code_bits, state_bits))


@pytest.mark.parametrize(
    ("n", "order"),
    [
        (1, [0]),
        (2, [0, 1]),
        (3, [1, 2, 0]),
        (7, [1, 6, 2, 5, 3, 4, 0]),
        (8, [1, 7, 2, 6, 3, 5, 0, 4]),
    ],
)
def test_trellis_codes_lie_next_to_those_of_the_mirror_image(n, order):
    assert reference.trellis_column_order(n) == order


@pytest.mark.parametrize("code_bits", range(1, 6))
def test_sums_of_two_trellis_levels_fit_a_signed_byte(code_bits):
    _, coarse, fine, shift = reference.trellis_tables(code_bits)
    assert shift == 0
    assert np.abs(np.add.outer(coarse, fine)).max() <= 63


def test_decode_checks_the_sizes():
    values = llava_fa.half_spectrum(gaussian((8, 10)))
    codes, scale = llava_fa.polar_encode(values, 5)
    with pytest.raises(ValueError, match="codes have shape"):
        llava_fa.polar_decode(codes, scale, 11 * 8, 5)
    with pytest.raises(ValueError, match="code_bits is 11"):
        llava_fa.polar_encode(values, 11)
    with pytest.raises(ValueError, match="codec is"):
        llava_fa.polar_encode(values, 5, "square")

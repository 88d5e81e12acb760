"""Compression under a full second moment: the output error on the data it came from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_fa import CompressionConfig, compress_matrix
from llava_fa.errors import NonFiniteError
from weights import gaussian


def inputs(count, n, seed=1):
    """Correlated rows with a mean and falling power, as activations have."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((n, n)) / np.sqrt(n) + np.eye(n)
    return (rng.standard_normal((count, n)) + 0.3) / np.sqrt(1.0 + np.arange(n)) @ mixing


def second_moment(x):
    return (x.T @ x / len(x)).astype(np.float32)


def output_error(weight, matrix, x):
    """Relative squared output error in float64."""
    dense = np.asarray(matrix.dense(), dtype=np.float64)
    y = x @ weight.astype(np.float64).T
    return np.sum((x @ dense.T - y) ** 2) / np.sum(y**2)


@pytest.mark.parametrize("codec", ["ring", "product", "trellis"])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_feedback_lowers_the_output_error_on_other_data(codec, bits):
    weight, n = gaussian((192, 160)), 160
    moment, held_out = second_moment(inputs(2000, n)), inputs(2001, n)[1000:]
    errors = {
        calibration: output_error(
            weight,
            compress_matrix(
                weight,
                CompressionConfig(bits=bits, codec=codec, calibration=calibration, state_bits=10),
                input_second_moment=moment,
            ),
            held_out,
        )
        for calibration in ("hessian", "diagonal")
    }
    assert errors["hessian"] < 0.7 * errors["diagonal"]


@pytest.mark.parametrize("rank", [0, 4])
def test_the_objective_is_the_output_error_up_to_damping(rank):
    weight, x = gaussian((96, 80)), inputs(500, 80)
    config = CompressionConfig(bits=2, rank=rank, odc="none")
    matrix = compress_matrix(weight, config, input_second_moment=second_moment(x))
    # the damping of 1 % of the mean adds 1 % of the plain squared error, relative to the output
    power = np.trace(x.T @ x / len(x)) / 80
    dense = np.asarray(matrix.dense(), dtype=np.float64)
    y = x @ weight.astype(np.float64).T / np.sqrt(len(x))
    difference = x @ dense.T / np.sqrt(len(x)) - y
    damping = 0.01 * power
    expected = (np.sum(difference**2) + damping * np.sum((dense - weight) ** 2)) / (
        np.sum(y**2) + damping * np.sum(weight.astype(np.float64) ** 2)
    )
    # Rows 0 and m/2 of the spectrum are their own mirror: decoding drops the half of their error
    # that no real matrix has, one part in m of all.
    assert expected <= matrix.objective[-1] * 1.002
    assert matrix.objective[-1] == pytest.approx(expected, rel=2.5 / 96)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 70),
    samples=st.integers(1, 30),
    codec=st.sampled_from(["ring", "trellis"]),
    silent=st.booleans(),
)
def test_any_second_moment_of_any_data_works(rows, cols, samples, codec, silent):
    """Few samples (singular), channels that are never active, one column, one row."""
    x = inputs(samples, cols)
    if silent:
        x[:, ::2] = 0.0
    weight = gaussian((rows, cols))
    config = CompressionConfig(bits=4, codec=codec)
    matrix = compress_matrix(weight, config, input_second_moment=second_moment(x))
    assert np.isfinite(matrix.dense()).all()
    assert matrix.objective[-1] <= 1.0


def test_a_vector_or_the_diagonal_setting_means_no_feedback():
    weight, moment = gaussian((40, 30)), second_moment(inputs(100, 30))
    vector = compress_matrix(weight, input_second_moment=np.diag(moment).copy())
    diagonal = compress_matrix(
        weight, CompressionConfig(bits=3, calibration="diagonal"), input_second_moment=moment
    )
    assert np.array_equal(vector.dense(), diagonal.dense())
    full = compress_matrix(weight, input_second_moment=moment)
    assert not np.array_equal(vector.dense(), full.dense())


@pytest.mark.parametrize("moment_kind", ["none", "full"])
def test_unbiased_codes_give_outputs_that_are_not_too_small(moment_kind):
    weight, x = gaussian((512, 200)), inputs(3000, 200)
    moment = second_moment(x) if moment_kind == "full" else None
    y = x @ weight.astype(np.float64).T
    carried = {}
    for row_scale in ("least-squares", "unbiased"):
        config = CompressionConfig(bits=2, row_scale=row_scale)
        matrix = compress_matrix(weight, config, input_second_moment=moment)
        carried[row_scale] = np.sum(y * (x @ matrix.dense().T)) / np.sum(y**2)
    assert carried["least-squares"] < carried["unbiased"]
    # under feedback D is the codec's on a Gaussian, and targets are a little larger than entries
    assert carried["unbiased"] == pytest.approx(1.0, abs=0.03)


def test_auto_row_scales_are_least_squares_for_a_matrix_and_unbiased_in_a_checkpoint():
    weight = gaussian((64, 48))
    auto = compress_matrix(weight, CompressionConfig(bits=2))
    fitted = compress_matrix(weight, CompressionConfig(bits=2, row_scale="least-squares"))
    assert np.array_equal(auto.dense(), fitted.dense())
    assert CompressionConfig(bits=2).for_checkpoint().row_scale == "unbiased"
    assert CompressionConfig(row_scale="least-squares").for_checkpoint().row_scale != "unbiased"


def test_torch_moments_of_any_float_type_are_taken():
    weight, moment = gaussian((24, 20)), second_moment(inputs(100, 20))
    reference = compress_matrix(weight, input_second_moment=moment).dense()
    for converted in (torch.from_numpy(moment), torch.from_numpy(moment).double()):
        result = compress_matrix(weight, input_second_moment=converted)
        assert np.array_equal(result.dense(), reference)


def test_what_is_no_second_moment_is_refused():
    weight, moment = gaussian((10, 6)), second_moment(inputs(50, 6))
    skewed = moment.copy()
    skewed[0, 1] += 1.0
    with pytest.raises(ValueError, match="not symmetric: entry \\(1, 0\\)"):
        compress_matrix(weight, input_second_moment=skewed)
    indefinite = np.eye(6, dtype=np.float32) + 3.0 * (1 - np.eye(6, dtype=np.float32))
    with pytest.raises(ValueError, match="not positive semidefinite"):
        compress_matrix(weight, input_second_moment=indefinite)
    moment[2, 2] = np.nan
    with pytest.raises(NonFiniteError, match="second_moment"):
        compress_matrix(weight, input_second_moment=moment)
    with pytest.raises(ValueError, match="second_moment"):
        compress_matrix(weight, input_second_moment=np.eye(5, dtype=np.float32))


def test_under_feedback_scales_even_out_the_weight_and_leave_the_input_to_the_filter():
    x = inputs(2000, 96) * np.logspace(-1, 1, 96)
    even, uneven = gaussian((800, 96)), gaussian((800, 96)) * np.logspace(-1, 1, 96)

    def input_scales(weight, calibration):
        config = CompressionConfig(bits=2, calibration=calibration)
        matrix = compress_matrix(
            weight.astype(np.float32), config, input_second_moment=second_moment(x)
        )
        return matrix.state_dict().get("channel_scale_in")

    assert input_scales(even, "hessian") is None
    assert input_scales(even, "diagonal") is not None
    without_data = compress_matrix(uneven.astype(np.float32), CompressionConfig(bits=2))
    expected = without_data.state_dict()["channel_scale_in"]
    assert torch.equal(input_scales(uneven, "hessian"), expected)

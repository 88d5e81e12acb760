"""Compression on a GPU against the CPU library's."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from device_cases import CODES, SHAPES, needs_gpu, weight
from llava_fa import (
    CompressedMatrix,
    CompressionConfig,
    DeviceError,
    NonFiniteError,
    compress_matrix,
)

pytestmark = needs_gpu


def assert_as_on_the_cpu(
    given: Tensor, config: CompressionConfig, tolerance: float = 1e-3, **moments: Any
) -> None:
    """Codes of entries halfway between points may differ; nothing else."""
    expected = compress_matrix(given.cpu(), config, **moments)
    found = compress_matrix(given.cuda(), config, **moments)
    assert found.spec == expected.spec
    assert found.objective == pytest.approx(expected.objective, rel=tolerance)
    error = expected.relative_error(given.cpu())
    assert found.relative_error(given.cpu()) == pytest.approx(error, rel=tolerance, abs=1e-12)
    assert found.relative_error(given.cuda()) == pytest.approx(error, rel=tolerance, abs=1e-9)


def same(first: CompressedMatrix, second: CompressedMatrix) -> bool:
    tensors = second.state_dict()
    return all(torch.equal(value, tensors[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize(("codec", "bits"), CODES)
def test_codes(codec: str, bits: float) -> None:
    assert_as_on_the_cpu(weight(300, 200), CompressionConfig(bits=bits, codec=codec))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("codec", ["ring", "trellis"])
def test_shapes(shape: tuple[int, int], codec: str) -> None:
    assert_as_on_the_cpu(weight(*shape), CompressionConfig(bits=2, codec=codec, state_bits=8))


@pytest.mark.parametrize("rows", [1022, 1026, 1100])
@pytest.mark.parametrize(("bits", "state_bits"), [(1.0, 16), (1.0, 10), (2.0, 14), (4.0, 16)])
def test_trellis_states(rows: int, bits: float, state_bits: int) -> None:
    config = CompressionConfig(bits=bits, codec="trellis", state_bits=state_bits)
    assert_as_on_the_cpu(weight(rows, 8), config)


# Lengths whose transforms are too long for shared memory, in either direction.
@pytest.mark.parametrize("shape", [(64, 18944), (60000, 16), (4304, 1152)])
def test_long_transforms(shape: tuple[int, int]) -> None:
    assert_as_on_the_cpu(weight(*shape), CompressionConfig(bits=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_and_strides(dtype: torch.dtype) -> None:
    wide, config = weight(50, 60, dtype=dtype).cuda(), CompressionConfig(bits=3)
    for given in (wide[:, 5:37], wide.T, wide[:1], wide[:1].expand(9, 60), -wide):
        assert same(compress_matrix(given, config), compress_matrix(given.clone(), config))


def test_options_and_moments() -> None:
    given = weight(90, 120) * torch.linspace(0, 3, 120).exp()
    moment = torch.linspace(0, -4, 120).exp()
    for options in ({"odc": "none"}, {"signs": False}, {"row_scale": "unbiased"}, {"seed": 3}):
        config = CompressionConfig(bits=3, **options)
        assert_as_on_the_cpu(given, config, input_second_moment=moment)
    config = CompressionConfig(bits=3)
    on_gpu = compress_matrix(given.cuda(), config, input_second_moment=moment.cuda())
    assert same(on_gpu, compress_matrix(given.cuda(), config, input_second_moment=moment))


def correlated_moment(channels: int) -> Tensor:
    inputs = weight(2 * channels, channels)
    inputs[:, 1:] += 0.8 * inputs[:, :-1]
    return inputs.T @ inputs / len(inputs)


# Columns in one block of the filter, in whole ones, and in a short last one; two segments.
@pytest.mark.parametrize("shape", [(9, 1), (40, 21), (61, 128), (131, 150), (1100, 70)])
@pytest.mark.parametrize(
    ("codec", "bits"),
    [("uniform", 3), ("product", 2.5), ("ring", 1), ("ring", 4), ("trellis", 1), ("trellis", 4)],
)
@pytest.mark.parametrize("row_scale", ["least-squares", "unbiased"])
def test_error_feedback(shape: tuple[int, int], codec: str, bits: float, row_scale: str) -> None:
    """A point that goes the other way is fed back, and so changes later ones of its row."""
    config = CompressionConfig(bits=bits, codec=codec, row_scale=row_scale, state_bits=9)
    moment = correlated_moment(shape[1])
    assert_as_on_the_cpu(weight(*shape), config, tolerance=0.02, input_second_moment=moment)


# Points and costs of a search within 48 KB of shared memory, beyond them, and in the workspace.
@pytest.mark.parametrize("state_bits", [9, 12, 14, 16])
def test_feedback_and_states(state_bits: int) -> None:
    config = CompressionConfig(bits=4, codec="trellis", state_bits=state_bits)
    moment = correlated_moment(70)
    given = weight(600, 70)
    assert_as_on_the_cpu(given, config, tolerance=0.02, input_second_moment=moment)


def test_equal_moments_give_equal_bits() -> None:
    given, moment = weight(300, 200).cuda(), correlated_moment(200)
    config = CompressionConfig(bits=2, codec="trellis")
    first = compress_matrix(given, config, input_second_moment=moment)
    for _ in range(5):
        assert same(compress_matrix(given, config, input_second_moment=moment), first)


def test_zeros_and_magnitudes() -> None:
    config = CompressionConfig(bits=3, codec="trellis")
    zeros = torch.zeros(30, 20).cuda()
    assert not compress_matrix(zeros, config).dense().any()
    for size in (1e-42, 1e-30, 1e30, 3e37):
        assert_as_on_the_cpu(size * weight(30, 20), config)


def test_what_is_not_finite_is_named() -> None:
    for bad in (float("nan"), float("-inf")):
        given = weight(30, 20).cuda()
        given[7, 11] = bad
        with pytest.raises(NonFiniteError, match=rf"weight\[7, 11\] is {bad}"):
            compress_matrix(given)


def test_equal_weights_give_equal_bits() -> None:
    given, config = weight(700, 300).cuda(), CompressionConfig(bits=2, codec="trellis")
    first = compress_matrix(given, config)
    for _ in range(5):
        assert same(compress_matrix(given, config), first)


def test_streams_and_threads() -> None:
    given, config = weight(300, 200).cuda(), CompressionConfig(bits=2, codec="trellis")
    expected = compress_matrix(given, config)
    torch.cuda.synchronize()
    found: list[CompressedMatrix] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found.append(compress_matrix(given, config))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(same(matrix, expected) for matrix in found)


def test_a_weight_that_its_stream_still_computes() -> None:
    given = weight(300, 200).cuda()
    expected = compress_matrix(2 * given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)  # cycles: half a second
        assert same(compress_matrix(2 * given), expected)


def test_graphs_do_not_capture_compression() -> None:
    given = weight(30, 20).cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        with pytest.raises(DeviceError, match="cannot be captured"):
            compress_matrix(given)
        graph.capture_end()


# Both sides of products' tiles; all of a half spectrum; a single column and row.
@pytest.mark.parametrize(
    ("shape", "rank"),
    [((1, 40), 1), ((40, 1), 1), ((61, 64), 31), ((131, 150), 1), ((700, 300), 70)],
)
@pytest.mark.parametrize("codec", ["uniform", "product", "ring", "trellis"])
@pytest.mark.parametrize("kind", ["none", "diagonal", "full"])
def test_low_rank(shape: tuple[int, int], rank: int, codec: str, kind: str) -> None:
    """The alternation may stop a pass earlier or later, and so end in another optimum."""
    given = weight(*shape) + 2 * torch.outer(weight(shape[0], 1)[:, 0], weight(1, shape[1])[0])
    full = correlated_moment(shape[1])
    moment = {"none": None, "diagonal": full.diagonal(), "full": full}[kind]
    config = CompressionConfig(
        bits=2, codec=codec, rank=rank, factor_bits=16, state_bits=9, max_alternations=3
    )
    expected = compress_matrix(given, config, input_second_moment=moment)
    found = compress_matrix(given.cuda(), config, input_second_moment=moment)
    assert found.spec == expected.spec
    assert found.objective[0] == pytest.approx(expected.objective[0], rel=0.02, abs=1e-6)
    assert found.objective[-1] == pytest.approx(expected.objective[-1], rel=0.03, abs=1e-6)
    error = expected.relative_error(given)
    assert found.relative_error(given) == pytest.approx(error, rel=0.03, abs=1e-6)


def test_low_rank_of_little_rank_and_of_zeros() -> None:
    config = CompressionConfig(bits=3, rank=6)
    assert not compress_matrix(torch.zeros(40, 30).cuda(), config).dense().any()
    two = weight(40, 2) @ weight(2, 30)
    error = compress_matrix(two, config).relative_error(two)
    assert compress_matrix(two.cuda(), config).relative_error(two) <= 1.3 * error


def test_equal_ranks_give_equal_bits() -> None:
    given, config = weight(700, 300).cuda(), CompressionConfig(bits=3, rank=20)
    first = compress_matrix(given, config)
    for _ in range(5):
        assert same(compress_matrix(given, config), first)

"""Single stages and dense weights on a GPU against the CPU library's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import llava_fa
from device_cases import CODES, SHAPES, needs_gpu, weight
from llava_fa import CompressionConfig, DeviceError, compress_matrix
from llava_fa.nn import FourierLinear

pytestmark = needs_gpu

LONG = [(64, 18944), (60000, 16)]  # transforms too long for shared memory, in either direction


def spectrum(rows: int, cols: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows // 2 + 1, cols, generator=generator, dtype=torch.complex64)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.is_cuda
    assert (found.cpu() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("shape", SHAPES + LONG)
def test_half_spectra_and_back(shape: tuple[int, int]) -> None:
    given = weight(*shape)
    found = llava_fa.half_spectrum(given.cuda())
    assert_near(found, llava_fa.half_spectrum(given), 1e-6)
    assert_near(llava_fa.inverse_half_spectrum(found, shape[0]), given, 2e-6)
    values = spectrum(*shape)
    expected = llava_fa.inverse_half_spectrum(values, shape[0])
    assert_near(llava_fa.inverse_half_spectrum(values.cuda(), shape[0]), expected, 2e-6)


@pytest.mark.parametrize("rank", [1, 7, 30])
def test_truncated_svds(rank: int) -> None:
    given = spectrum(200, 90) * 0.8 ** torch.arange(90)
    for options in ({}, {"seed": 3}, {"exact": True}, {"warm_start": given[:rank]}):
        arguments: dict[str, Any] = options
        expected = llava_fa.truncated_svd(given, rank, **arguments)
        left, values, right = llava_fa.truncated_svd(given.cuda(), rank, **arguments)
        assert_near(values, expected[1], 1e-4)
        assert_near((left * values) @ right, (expected[0] * expected[1]) @ expected[2], 1e-3)


@pytest.mark.parametrize(("codec", "bits"), CODES)
@pytest.mark.parametrize("rows", [9, 300, 1100])
def test_codes(rows: int, codec: str, bits: float) -> None:
    code_bits, values = int(2 * bits), spectrum(rows, 70)
    codes, scale = llava_fa.polar_encode(values, code_bits, codec)
    expected = llava_fa.polar_decode(codes, scale, 70, code_bits, codec)
    found = llava_fa.polar_decode(codes.cuda(), scale.cuda(), 70, code_bits, codec)
    assert_near(found, expected, 1e-6)
    on_gpu = llava_fa.polar_encode(values.cuda(), code_bits, codec)
    decoded = llava_fa.polar_decode(*on_gpu, 70, code_bits, codec).cpu()
    error = (expected - values).norm().item()
    assert (decoded - values).norm().item() == pytest.approx(error, rel=2e-3)


def test_diagonal_scales() -> None:
    given = weight(90, 120) * torch.linspace(0, 3, 120).exp()
    moment = torch.linspace(0, -4, 120).exp()
    expected, _ = llava_fa.diagonal_scales(given, moment)
    for place in (moment, moment.cuda()):
        found, other = llava_fa.diagonal_scales(given.cuda(), place)
        assert other is None
        assert found is not None
        assert expected is not None
        assert_near(found, expected, 1e-6)


@pytest.mark.parametrize("shape", SHAPES + LONG)
@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"codec": "trellis", "bits": 2}])
def test_dense_weights(shape: tuple[int, int], options: dict[str, Any]) -> None:
    matrix = compress_matrix(weight(*shape), CompressionConfig(**{"bits": 3, **options}))
    assert_near(matrix.dense(device="cuda"), matrix.dense(), 2e-6)
    assert_near(FourierLinear.from_matrix(matrix).to("cuda").dense(), matrix.dense(), 2e-6)


def test_equal_input_gives_equal_bits() -> None:
    matrix = compress_matrix(weight(700, 300), CompressionConfig(bits=2, codec="trellis", rank=3))
    values = spectrum(700, 300).cuda()
    dense, codes = matrix.dense(device="cuda"), llava_fa.polar_encode(values, 4, "trellis")[0]
    for _ in range(5):
        assert torch.equal(matrix.dense(device="cuda"), dense)
        assert torch.equal(llava_fa.polar_encode(values, 4, "trellis")[0], codes)


def test_streams() -> None:
    given = weight(300, 200).cuda()
    expected = llava_fa.half_spectrum(given)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        found = llava_fa.half_spectrum(given)
    torch.cuda.synchronize()
    assert torch.equal(found, expected)


def test_stages_are_not_captured() -> None:
    given = weight(30, 20).cuda()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        with pytest.raises(DeviceError, match="cannot be captured"):
            llava_fa.half_spectrum(given)
        graph.capture_end()


def test_tensors_of_two_places_are_refused() -> None:
    codes, scale = llava_fa.polar_encode(spectrum(30, 20), 4)
    with pytest.raises(ValueError, match="row_scale is on cpu, the codes on cuda:0"):
        llava_fa.polar_decode(codes.cuda(), scale, 20, 4)

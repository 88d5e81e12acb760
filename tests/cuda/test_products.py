"""Every kernel on a GPU against the CPU library and the decoded weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from device_cases import CODES, needs_gpu
from llava_fa import (
    CompressedMatrix,
    CompressionConfig,
    DeviceError,
    compress_matrix,
)
from llava_fa.nn import FourierLinear

pytestmark = needs_gpu

SHAPES = [(1, 1), (9, 1), (1, 40), (61, 64), (131, 77), (512, 1025), (1100, 538), (1021, 769)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 1.2e-3}
"""Relative distance: the product's own, 1e-5 or 1e-3, and half an ulp of the output."""


def matrix(shape: tuple[int, int], codec: str = "ring", bits: float = 3.0, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    config = CompressionConfig(bits=bits, codec=codec, **options)
    return compress_matrix(torch.randn(shape, generator=generator), config)


def layer(packed: CompressedMatrix, bias: Tensor | None = None) -> FourierLinear:
    return FourierLinear.from_matrix(packed, bias).to("cuda")


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(dtype).cuda()


def assert_near(found: Tensor, packed: CompressedMatrix, x: Tensor) -> None:
    """Compare relative to the size that the product of random activations has."""
    tolerance = TOLERANCE[x.dtype]
    x, weight = x.double().cpu(), packed.dense().double()
    typical = x.norm() * weight.norm() / weight.shape[1] ** 0.5
    error = (found.double().cpu() - x @ weight.T).norm() / typical
    assert error <= tolerance, float(error)


@pytest.mark.parametrize(("codec", "bits"), CODES)
@pytest.mark.parametrize("tokens", [1, 4, 5, 70])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_codes(codec: str, bits: float, tokens: int, dtype: torch.dtype) -> None:
    packed = matrix((300, 200), codec, bits)
    x = inputs(tokens, 200, dtype=dtype)
    assert_near(layer(packed)(x), packed, x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 3, 65])
@pytest.mark.parametrize("rank", [0, 1])
def test_shapes(shape: tuple[int, int], tokens: int, rank: int) -> None:
    packed = matrix(shape, rank=rank)
    x = inputs(tokens, shape[1])
    assert_near(layer(packed)(x), packed, x)


# 18944 / 2 is too long for shared memory on some GPUs, 60000 / 2 on all.
@pytest.mark.parametrize("shape", [(64, 11008), (18944, 48), (32, 60000), (4304, 1152)])
def test_long_transforms(shape: tuple[int, int]) -> None:
    packed = matrix(shape, "ring", 2.0)
    for tokens in (1, 300):
        x = inputs(tokens, shape[1])
        assert_near(layer(packed)(x), packed, x)


@pytest.mark.parametrize("rows", [1022, 1026, 1100])
@pytest.mark.parametrize("bits", [1.0, 2.0, 4.0])
def test_trellis_segments(rows: int, bits: float) -> None:
    packed = matrix((rows, 40), "trellis", bits)
    for tokens in (1, 8):
        x = inputs(tokens, 40)
        assert_near(layer(packed)(x), packed, x)


def test_more_activations_than_share_the_workspace() -> None:
    packed = matrix((64, 96))
    x = inputs(2048 + 3, 96)
    assert_near(layer(packed)(x), packed, x)


def test_equal_input_gives_equal_bits() -> None:
    on_gpu = layer(matrix((700, 900), rank=4))
    for tokens in (1, 100):
        x = inputs(tokens, 900)
        first = on_gpu(x)
        for _ in range(20):
            assert torch.equal(on_gpu(x), first)


def test_bias_and_leading_dimensions() -> None:
    packed = matrix((48, 32))
    bias = torch.randn(48)
    x = inputs(2, 3, 32)
    found = layer(packed, bias)(x)
    assert found.shape == (2, 3, 48)
    assert_near(found - bias.cuda(), packed, x)
    assert layer(packed)(x[:0]).shape == (0, 3, 48)


def test_rows_apart_and_misaligned_activations() -> None:
    packed = matrix((48, 32))
    wide = inputs(6, 40)
    for x in (wide[:, 5:37], inputs(32, 6).T, inputs(1, 32).expand(6, 32)):
        assert_near(layer(packed)(x), packed, x)


def test_streams_do_not_wait_for_each_other() -> None:
    on_gpu = layer(matrix((300, 200)))
    x = inputs(3, 200)
    expected = on_gpu(x)
    results = []
    torch.cuda.synchronize()
    for _ in range(4):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            results.append(on_gpu(x))
    torch.cuda.synchronize()
    for found in results:
        assert torch.equal(found, expected)


def test_constants_outlive_the_products_that_wait_for_them() -> None:
    on_gpu, x = layer(matrix((300, 200))), inputs(3, 200)
    expected = on_gpu(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)  # cycles: half a second
        found = on_gpu(x)
    on_gpu.row_scale.mul_(1)  # so that the next product makes new constants, and drops the old ones
    on_gpu(x)
    sizes = range(512, 1 << 16, 512)
    overwritten = [torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in sizes]
    torch.cuda.synchronize()
    assert torch.equal(found, expected)
    del overwritten


@pytest.mark.parametrize(("first", "tokens"), [(1, 1), (40, 40), (1, 40), (40, 1)])
def test_graphs_capture_products(first: int, tokens: int) -> None:
    """Of any number of tokens, once the layer has multiplied some."""
    packed = matrix((300, 200), rank=2)
    on_gpu = layer(packed)
    on_gpu(inputs(first, 200))
    x = inputs(tokens, 200)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = on_gpu(x)
    x.copy_(2 * x)
    graph.replay()
    assert_near(y, packed, x)


def test_the_first_product_is_not_captured() -> None:
    on_gpu = layer(matrix((30, 20)))
    x = inputs(1, 20)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        with pytest.raises(DeviceError, match="call the layer once before"):
            on_gpu(x)
        graph.capture_end()


def test_compiled() -> None:
    packed = matrix((300, 200))
    on_gpu = layer(packed)
    x = inputs(3, 200)
    compiled: Any = torch.compile(on_gpu, fullgraph=True)
    assert_near(compiled(x), packed, x)


def test_gradients_are_those_of_the_dense_layer() -> None:
    packed = matrix((300, 200))
    x = inputs(3, 200).requires_grad_()
    layer(packed)(x).square().sum().backward()
    reference = x.detach().cpu().double().requires_grad_()
    (reference @ packed.dense().double().T).square().sum().backward()
    assert x.grad is not None
    assert reference.grad is not None
    error = (x.grad.cpu() - reference.grad).norm() / reference.grad.norm()
    assert error <= 1e-4  # two products of 1e-5 and float32 sums


def test_misaligned_codes_are_refused() -> None:
    on_gpu = layer(matrix((300, 200)))
    shifted = torch.empty(on_gpu.codes.numel() + 1, dtype=torch.uint8, device="cuda")[1:]
    on_gpu._buffers["codes"] = shifted.view(on_gpu.codes.shape).copy_(on_gpu.codes)
    with pytest.raises(ValueError, match="codes is not aligned to 16 bytes"):
        on_gpu(inputs(1, 200))


def test_activations_elsewhere_are_refused() -> None:
    on_gpu = layer(matrix((30, 20)))
    with pytest.raises(ValueError, match="the activations are on cpu, the layer on cuda:0"):
        on_gpu(torch.zeros(1, 20))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus() -> None:
    packed = matrix((300, 200))
    for device in ("cuda:1", "cuda:0"):
        x = inputs(3, 200).to(device)
        assert_near(FourierLinear.from_matrix(packed).to(device)(x), packed, x)
    with pytest.raises(ValueError, match="on cuda:1, the layer on cuda:0"):
        layer(packed)(inputs(1, 200).to("cuda:1"))

"""A stored matrix in torch: its decoding, its gradients, and what is stored of its changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llava_fa import CompressedMatrix, CompressionConfig, compress_matrix
from llava_fa.trainable_linear import TrainableLinear
from llava_fa.trainable_matrix import TrainableMatrix, decode_weight


def matrix_of(shape: tuple[int, int], scaled: bool = False, **options: Any) -> CompressedMatrix:
    """Compress a random weight, with channel scales on both sides if ``scaled``."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(shape, generator=generator)
    moments: dict[str, torch.Tensor] = {}
    if scaled:
        weight = weight * torch.logspace(-1, 1, shape[0])[:, None] * torch.logspace(-1, 1, shape[1])
        moments = {
            "input_second_moment": torch.logspace(2, -2, shape[1]),
            "output_second_moment": torch.logspace(2, -2, shape[0]),
        }
    matrix = compress_matrix(weight, CompressionConfig(**options), **moments)
    assert matrix.spec.channel_scale_in == matrix.spec.channel_scale_out == scaled
    return matrix


def change_at_random(matrix: TrainableMatrix, size: float = 0.05) -> TrainableMatrix:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for change in matrix.changes.values():
            change.copy_(size * torch.randn(change.shape, generator=generator))
    return matrix


CASES: list[dict[str, Any]] = [
    {"shape": (32, 24), "bits": 2},
    {"shape": (33, 25), "bits": 2, "rank": 3},
    {"shape": (40, 21), "bits": 3, "rank": 2, "factor_bits": 16},
    {"shape": (31, 40), "bits": 2, "codec": "trellis", "rank": 2, "factor_bits": 5},
    {"shape": (200, 180), "bits": 1.5, "scaled": True, "rank": 4},
    {"shape": (1, 5), "bits": 2},
    {"shape": (2, 1), "bits": 2},
    {"shape": (24, 24), "bits": 3, "codec": "uniform", "signs": False},
]


class TestDecoding:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_equals_the_library(self, case: dict[str, Any]) -> None:
        matrix = matrix_of(**case)
        dense = matrix.dense()
        difference = (TrainableMatrix(matrix).weight() - dense).norm() / dense.norm()
        assert difference < 2e-6  # two float32 transforms of few hundred points each

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_what_is_stored_decodes_to_the_trained_weight(self, case: dict[str, Any]) -> None:
        start = matrix_of(**case)
        trained = change_at_random(TrainableMatrix(start))
        stored = CompressedMatrix.from_state_dict(trained.stored())
        weight = trained.weight().detach()
        assert stored.spec == start.spec
        assert torch.allclose(stored.dense(), weight, rtol=0, atol=2e-6 * float(weight.norm()))
        assert not torch.equal(stored.dense(), start.dense())

    @pytest.mark.parametrize("factor_bits", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16])
    def test_no_change_stores_the_same_bytes(self, factor_bits: int) -> None:
        matrix = matrix_of((48, 40), bits=2, rank=3, factor_bits=factor_bits)
        stored = TrainableMatrix(matrix).stored()
        for name, tensor in matrix.state_dict().items():
            assert torch.equal(tensor, stored[name]), name

    def test_zero_matrix_stays_zero(self) -> None:
        matrix = compress_matrix(torch.zeros(8, 6), CompressionConfig(bits=2))
        trained = change_at_random(TrainableMatrix(matrix))
        assert not trained.weight().any()
        assert not CompressedMatrix.from_state_dict(trained.stored()).dense().any()

    def test_scales_beyond_float16_are_stored_as_its_largest(self) -> None:
        trained = TrainableMatrix(matrix_of((16, 12), bits=2))
        with torch.no_grad():
            trained.changes["row_scale"].fill_(20.0)
        assert (trained.stored()["row_scale"] == torch.finfo(torch.float16).max).all()
        CompressedMatrix.from_state_dict(trained.stored())


class TestGradients:
    @pytest.mark.parametrize("shape", [(6, 5), (7, 4), (1, 3)])
    def test_decoding_against_finite_differences(self, shape: tuple[int, int]) -> None:
        m, n = shape
        generator = torch.Generator().manual_seed(0)

        def values(*size: int) -> torch.Tensor:
            return torch.rand(size, generator=generator, dtype=torch.float64) + 0.5

        unit = torch.complex(values(m // 2 + 1, n), values(m // 2 + 1, n))
        low_rank = torch.complex(values(m // 2 + 1, n), values(m // 2 + 1, n))
        inputs = [values(m // 2 + 1), low_rank, values(n), values(m)]
        for tensor in inputs:
            tensor.requires_grad_()
        assert torch.autograd.gradcheck(lambda *given: decode_weight(unit, *given), inputs)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_layer_against_plain_autograd(self, case: dict[str, Any]) -> None:
        matrix = change_at_random(TrainableMatrix(matrix_of(**case)))
        bias = torch.nn.Parameter(torch.randn(matrix.spec.shape[0]), requires_grad=False)
        x = torch.randn(2, 3, matrix.spec.shape[1], requires_grad=True)
        inputs = [x, *matrix.changes.values()]
        target = torch.randn(2, 3, matrix.spec.shape[0])
        plain = torch.nn.functional.linear(x, matrix.weight(), bias)
        layer = TrainableLinear(matrix, bias)(x)
        assert torch.allclose(plain, layer, atol=1e-5)
        expected = torch.autograd.grad((plain * target).sum(), inputs)
        found = torch.autograd.grad((layer * target).sum(), inputs)
        for one, other in zip(expected, found, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))

    def test_no_dense_weight_waits_for_the_backward_pass(self) -> None:
        matrix = TrainableMatrix(matrix_of((64, 48), bits=2, rank=2))
        kept: list[int] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        x = torch.randn(1, 48, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            TrainableLinear(matrix, None)(x)
        assert kept == [48]

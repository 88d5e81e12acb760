"""FourierLinear: the same product as with the decoded weight, and torch's ways with a layer.

Tolerances: both ways compute in float32, whose unit roundoff is 6e-8. A product of length n by one
way differs from the other by some √n times that, the transforms add a few log n; 1e-5 of the
largest entry leaves a factor of ten. Narrow dtypes round the result once more: 2^-8 and 2^-11.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn

import llava_fa
from llava_fa import CompressedMatrix, CompressionConfig, compress_matrix, packed_ops
from llava_fa.errors import FormatError
from llava_fa.nn import FourierLinear

SHAPE = (30, 22)
FLOAT32_ERROR = 1e-5
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def matrix(shape: tuple[int, int] = SHAPE, **options: Any) -> CompressedMatrix:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator)
    moments = torch.logspace(-2, 2, shape[1])
    config = CompressionConfig(**{"bits": 3, "rank": 2, **options})
    return compress_matrix(weight, config, input_second_moment=moments)


def layer(bias: bool = True, **options: Any) -> FourierLinear:
    packed = matrix(**options)
    values = torch.linspace(-1, 1, packed.shape[0]) if bias else None
    return FourierLinear.from_matrix(packed, values)


def reference(packed: FourierLinear) -> nn.Linear:
    """The dense layer of the same values."""
    dense = nn.Linear(packed.in_features, packed.out_features, packed.bias is not None)
    dense.weight = nn.Parameter(packed.dense())
    if packed.bias is not None:
        dense.bias = nn.Parameter(packed.bias.detach().float())
    return dense


def inputs(*leading: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*leading, SHAPE[1], generator=torch.Generator().manual_seed(seed))


def assert_near(found: torch.Tensor, expected: torch.Tensor, rounding: float = 0.0) -> None:
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    limit = (FLOAT32_ERROR + rounding) * scale
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=limit)


@pytest.fixture
def preparations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts how often a matrix is prepared for the core."""
    calls: list[str] = []
    real = packed_ops.unpack

    def counted(name: str, *args: Any, **options: Any) -> CompressedMatrix:
        calls.append(name)
        return real(name, *args, **options)

    monkeypatch.setattr(packed_ops, "unpack", counted)
    return calls


class TestForward:
    @pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (2, 1, 4), (0,), (3, 0)])
    def test_equals_the_dense_layer_for_any_leading_shape(self, leading: tuple[int, ...]) -> None:
        packed = layer()
        x = inputs(*leading)
        assert_near(packed(x), reference(packed)(x))

    @pytest.mark.parametrize(
        "options",
        [
            {"rank": 0},
            {"codec": "trellis", "bits": 2},
            {"factor_bits": 16},
            {"signs": False},
            {"shape": (31, 17)},
            {"shape": (1, 22)},
            {"shape": (30, 1), "rank": 1},
        ],
        ids=str,
    )
    def test_every_kind_of_matrix(self, options: dict[str, Any]) -> None:
        shape = options.pop("shape", SHAPE)
        if 1 in shape:
            options["rank"] = min(options.get("rank", 2), 1)
        packed = FourierLinear.from_matrix(matrix(shape, **options))
        x = torch.randn(4, shape[1], generator=torch.Generator().manual_seed(1))
        assert_near(packed(x), reference(packed)(x))

    @pytest.mark.parametrize("dtype", ROUNDING)
    @pytest.mark.parametrize("bias", [False, True])
    def test_dtypes_are_kept_and_rounded_once(self, dtype: torch.dtype, bias: bool) -> None:
        packed = layer(bias).to(dtype)
        x = inputs(7).to(dtype)
        found = packed(x)
        assert found.dtype == dtype
        assert_near(found, reference(packed)(x.float()), ROUNDING[dtype])

    def test_strided_activations(self) -> None:
        packed = layer()
        x = torch.randn(SHAPE[1], 9)
        assert_near(packed(x.T), reference(packed)(x.T.contiguous()))

    def test_activations_whose_sign_is_still_to_be_changed(self) -> None:
        packed = layer()
        x = torch.complex(inputs(3), inputs(3, seed=2)).conj().imag
        assert x.is_neg()
        assert torch.equal(packed(x), packed(x.clone()))

    @pytest.mark.parametrize("dtype", ROUNDING)
    def test_rounding_is_that_of_torch(self, dtype: torch.dtype) -> None:
        multiply = matrix().multiply
        x = inputs(6) * torch.tensor([[1], [1e-6], [1e-30], [1e4], [1e38], [math.nan]])
        exact = multiply(x, torch.float32, half=False)
        rounded = multiply(x, dtype, half=False)
        torch.testing.assert_close(rounded, exact.to(dtype), rtol=0, atol=0, equal_nan=True)

    def test_autocast_gives_its_dtype_as_a_dense_layer_does(self) -> None:
        packed = layer()
        x = inputs(4)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = packed(x), reference(packed)(x)
        assert found.dtype == expected.dtype == torch.bfloat16
        # The dense layer rounds its operands too.
        assert_near(found, expected, 4 * ROUNDING[torch.bfloat16])

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients(self, mode: Any) -> None:
        packed = layer()
        with mode():
            assert_near(packed(inputs(3)), reference(packed)(inputs(3)))


class TestGradients:
    @pytest.mark.parametrize("dtype", ROUNDING)
    @pytest.mark.parametrize("leading", [(5,), (2, 3), (0,)])
    def test_equal_those_of_the_dense_layer(
        self, dtype: torch.dtype, leading: tuple[int, ...]
    ) -> None:
        packed = layer()
        dense = reference(packed)
        x = inputs(*leading).to(dtype).requires_grad_()
        wide = x.detach().float().requires_grad_()
        packed(x).float().square().sum().backward()
        dense(wide).square().sum().backward()
        assert x.grad.dtype == dtype
        assert_near(x.grad, wide.grad, 2 * ROUNDING[dtype])
        assert_near(packed.bias.grad, dense.bias.grad, 2 * ROUNDING[dtype])

    def test_gradients_of_gradients(self) -> None:
        """A quadratic form of a linear map: its Hessian is 2 Wᵀ W."""
        packed = layer(bias=False)
        x = inputs().requires_grad_()

        def energy(point: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = packed(point).square().sum()
            return result

        hessian = torch.autograd.functional.hessian(energy, x)
        weight = packed.dense()
        assert_near(hessian, 2 * weight.T @ weight)

    def test_stored_tensors_have_none(self) -> None:
        packed = layer()
        packed(inputs(2)).sum().backward()
        assert [name for name, _ in packed.named_parameters()] == ["bias"]
        assert not any(tensor.requires_grad for tensor in packed.stored_tensors().values())


class TestCompile:
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_compiles_without_breaks(self, backend: str) -> None:
        packed = layer()
        compiled: Any = torch.compile(packed, backend=backend, fullgraph=True)
        for leading in ((3,), (2, 5), (2, 6)):
            x, y = inputs(*leading).requires_grad_(), inputs(*leading).requires_grad_()
            found, expected = compiled(x), packed(y)
            assert torch.equal(found, expected)
            found.square().sum().backward()
            expected.square().sum().backward()
            assert_near(x.grad, y.grad)

    def test_compiled_under_autocast(self) -> None:
        packed = layer()
        compiled: Any = torch.compile(packed, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(inputs(3)), packed(inputs(3)))

    def test_compiled_layers_prepare_once(self, preparations: list[str]) -> None:
        compiled: Any = torch.compile(layer(), backend="aot_eager", fullgraph=True)
        for _ in range(3):
            compiled(inputs(2))
        assert len(preparations) == 1

    @pytest.mark.parametrize("name", ["multiply", "multiply_transposed"])
    def test_operators_pass_the_checks_of_torch(self, name: str) -> None:
        packed = layer()
        width = packed.in_features if name == "multiply" else packed.out_features
        operand = torch.randn(4, width, requires_grad=True)
        tensors = list(packed.stored_tensors().values())
        operator = getattr(packed_ops, name)
        torch.library.opcheck(operator, (operand, tensors, packed._description))

    def test_shapes_on_the_meta_device(self) -> None:
        packed = layer().to("meta")
        found = packed(torch.empty(2, 3, SHAPE[1], device="meta", dtype=torch.bfloat16))
        assert found.is_meta
        assert (found.shape, found.dtype) == ((2, 3, SHAPE[0]), torch.bfloat16)


class TestState:
    def test_state_dict_is_what_a_checkpoint_stores(self) -> None:
        packed = matrix()
        state = FourierLinear.from_matrix(packed).state_dict()
        assert list(state) == list(packed.spec.tensors())
        for name, tensor in packed.state_dict().items():
            assert state[name].dtype == tensor.dtype
            assert torch.equal(state[name], tensor), name

    def test_round_trip(self) -> None:
        packed = layer()
        empty = FourierLinear(packed.spec)
        empty.load_state_dict(packed.state_dict())
        assert torch.equal(empty(inputs(3)), packed(inputs(3)))

    def test_assigned_state(self) -> None:
        packed = layer()
        empty = FourierLinear(packed.spec, device="meta")
        empty.load_state_dict(packed.state_dict(), assign=True)
        assert torch.equal(empty(inputs(3)), packed(inputs(3)))

    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
    def test_loading_other_values_is_noticed(self, mode: Any) -> None:
        with mode():
            packed = layer()
            packed(inputs(2))
            other = copy.deepcopy(packed.state_dict())
            other["row_scale"] *= 2
            other["bias"].zero_()
            packed.load_state_dict(other)
            assert_near(packed(inputs(2)), reference(packed)(inputs(2)))

    def test_a_replaced_buffer_is_noticed(self) -> None:
        packed = layer(bias=False)
        packed(inputs(2))
        packed.matrix_scale = 3 * packed.matrix_scale
        expected = FourierLinear.from_matrix(
            packed_ops.unpack("", packed.spec, packed.state_dict())
        )
        assert torch.equal(packed(inputs(2)), expected(inputs(2)))

    def test_prepared_once_while_nothing_changes(self, preparations: list[str]) -> None:
        packed = layer()
        for _ in range(3):
            packed(inputs(2))
        packed.dense()
        packed.bfloat16()(inputs(2))
        assert len(preparations) == 1

    def test_nothing_outlives_the_layer(self) -> None:
        before = len(packed_ops._prepared)
        packed = layer()
        packed(inputs(2))
        assert len(packed_ops._prepared) == before + 1
        del packed
        assert len(packed_ops._prepared) == before

    def test_the_core_uses_the_buffers_memory(self) -> None:
        """A change behind torch's back shows in the next product: there is no second copy."""
        packed = layer(bias=False)
        before = packed(inputs(2))
        packed.row_scale.data.mul_(2)
        changed = CompressedMatrix.from_state_dict(packed.stored_tensors())
        assert_near(packed(inputs(2)), changed.matmul(inputs(2)))
        assert not torch.allclose(packed(inputs(2)), before)

    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
    def test_copies_are_independent(self, way: str) -> None:
        packed = layer()
        expected = packed(inputs(3))
        if way == "deepcopy":
            other = copy.deepcopy(packed)
        elif way == "pickle":
            other = pickle.loads(pickle.dumps(packed))
        else:
            file = io.BytesIO()
            torch.save(packed, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        assert torch.equal(other(inputs(3)), expected)
        other.row_scale.zero_()
        assert torch.equal(packed(inputs(3)), expected)

    @pytest.mark.parametrize("rank_options", [{}, {"factor_bits": 16}], ids=str)
    def test_casts_leave_the_stored_tensors(self, rank_options: dict[str, Any]) -> None:
        packed = layer(**rank_options)
        before = {name: tensor.clone() for name, tensor in packed.stored_tensors().items()}
        for cast in (torch.bfloat16, torch.float64, torch.float16):
            packed.to(cast)
            assert packed.bias.dtype == cast
        packed.float().half().type(torch.float32)
        for name, tensor in packed.stored_tensors().items():
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name]), name

    def test_casts_of_a_model_leave_the_stored_tensors(self) -> None:
        model = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[1]), layer()).bfloat16()
        assert model[0].weight.dtype == torch.bfloat16
        assert model[1].row_scale.dtype == torch.float16
        assert model(inputs(2).bfloat16()).dtype == torch.bfloat16

    def test_resident_bytes_are_the_stored_ones(self) -> None:
        packed = layer(bias=False)
        packed(inputs(2))
        buffers = sum(buffer.untyped_storage().nbytes() for buffer in packed.buffers())
        assert buffers == packed.spec.nbytes
        assert not list(packed.parameters())


class TestFromMatrix:
    def test_numpy_matrices_and_dense(self) -> None:
        packed = compress_matrix(torch.randn(SHAPE).numpy(), CompressionConfig(bits=3))
        dense = FourierLinear.from_matrix(packed).dense()
        assert (dense.dtype, dense.shape) == (torch.float32, SHAPE)
        assert torch.equal(dense, torch.from_numpy(packed.dense()))

    def test_a_parameter_stays_the_same_one(self) -> None:
        bias = nn.Parameter(torch.ones(SHAPE[0]))
        assert FourierLinear.from_matrix(matrix(), bias).bias is bias

    def test_description(self) -> None:
        assert repr(layer()) == (
            "FourierLinear(in_features=22, out_features=30, bias=True, codec=ring, bits=3, rank=2)"
        )

    def test_it_is_a_linear_layer_without_weight(self) -> None:
        packed = layer()
        assert isinstance(packed, nn.Linear)
        assert "weight" not in dict(packed.named_parameters())
        assert packed.weight.device == torch.device("cpu")
        with pytest.raises(AttributeError, match=r"weight\.shape: .*runtime='dense'"):
            _ = packed.weight.shape
        assert llava_fa.nn.FourierLinear is FourierLinear


class TestBadInputs:
    @pytest.mark.parametrize("shape", [(), (21,), (22, 3), (2, 0)])
    def test_width(self, shape: tuple[int, ...]) -> None:
        expected = re.escape(f"activations have shape {shape}, expected (..., 22)")
        with pytest.raises(ValueError, match=expected):
            layer()(torch.zeros(shape))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64])
    def test_dtype(self, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=f"activations are {dtype}, expected float32"):
            layer()(torch.zeros(2, 22, dtype=dtype))

    def test_device(self) -> None:
        class Elsewhere(torch.Tensor):
            """Says that it is on a device that this machine need not have."""

            device = torch.device("xpu:1")

        x = torch.zeros(2, 22).as_subclass(Elsewhere)
        with pytest.raises(ValueError, match=r"the activations: on xpu:1.*on the CPU"):
            layer()(x)
        packed = layer()
        packed._buffers["codes"] = packed.codes.as_subclass(Elsewhere)
        with pytest.raises(ValueError, match=r"the layer: on xpu:1.*runtime='dense'"):
            packed(inputs(2))

    def test_of_the_product_itself(self) -> None:
        multiply = matrix().multiply
        with pytest.raises(ValueError, match=r"shape \(3, 21\) on cpu, expected \(\.\.\., 22\)"):
            multiply(torch.zeros(3, 21), torch.float32, half=False)
        with pytest.raises(ValueError, match=r"shape \(\) on cpu, expected \(\.\.\., 22\)"):
            multiply(torch.zeros(()), torch.float32, half=False)
        with pytest.raises(TypeError, match="float64, expected float32, bfloat16 or float16"):
            multiply(inputs(1).double(), torch.float32, half=False)
        with pytest.raises(TypeError, match="int8, expected float32, bfloat16 or float16"):
            multiply(inputs(1), torch.int8, half=False)

    def test_bias_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"bias has shape \(22,\), expected \(30,\)"):
            FourierLinear.from_matrix(matrix(), torch.zeros(22))

    def test_nothing_was_loaded(self) -> None:
        with pytest.raises(FormatError, match="header has format version 0"):
            FourierLinear(matrix().spec)(inputs(2))

    def test_values_of_another_matrix(self) -> None:
        packed = layer()
        header = matrix(signs=False).state_dict()["header"]
        packed.load_state_dict({**packed.state_dict(), "header": header})
        with pytest.raises(FormatError, match="header says"):
            packed(inputs(2))

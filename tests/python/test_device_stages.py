"""Stages on GPUs as far as no GPU is needed: refusals, and what is asked of the core.

``tests/cpp/test_cuda_stages.cpp`` runs the kernels, ``tests/cuda`` all of it on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from core_stand_ins import Stages, as_a_gpu, weight, without_gpu
from pretend_gpu import pretend_gpu
from torch import Tensor

import llava_fa
from llava_fa import (
    CompressedMatrix,
    CompressionConfig,
    DeviceError,
    DeviceMemoryError,
    NonFiniteError,
    _core,
    compress_matrix,
    device_stages,
)
from llava_fa.error_model import profile_matrix
from llava_fa.nn import FourierLinear
from llava_fa.output_error import output_noise_gain

CODES = [
    ("ring", 5, 0),
    ("product", 10, 0),
    ("uniform", 4, 0),
    ("trellis", 4, 9),
    ("trellis", 8, 12),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What was asked of a GPU; tensors count as being there."""
    Stages.calls = []
    as_a_gpu(monkeypatch, "llava_fa.stages", "llava_fa.device_stages")
    monkeypatch.setattr(_core, "DeviceStages", Stages)
    monkeypatch.setattr(_core, "CompressionOptions", dict)
    device_stages._planned.cache_clear()
    yield Stages.calls
    device_stages._planned.cache_clear()


def spectrum(*shape: int, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def on_cpu(array: Tensor) -> npt.NDArray[Any]:
    """As NumPy, which no module takes for a tensor on a GPU."""
    return array.resolve_conj().resolve_neg().contiguous().numpy()


def assert_same(found: Any, expected: Any) -> None:
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Tensor)
        assert torch.equal(one, torch.from_numpy(other))


class TestResultsAreTheCores:
    """What is expected comes from NumPy arrays, so from the CPU; the calls say who answered."""

    @pytest.fixture(autouse=True)
    def answered(self, calls: list[tuple[str, dict[str, Any]]]) -> Iterator[set[str]]:
        """Functions of the GPU that a test expects to be called, each at least once."""
        expected: set[str] = set()
        yield expected
        assert {name for name, _ in calls} == expected

    @pytest.mark.parametrize(
        "given",
        [
            weight(30, 22),
            weight(30, 40)[:, 3:25],
            weight(22, 30).T,
            weight(1, 22).expand(30, 22),
            weight(1, 1),
            weight(31, 22, dtype=torch.float64),
        ],
    )
    def test_half_spectra(self, answered: set[str], given: Tensor) -> None:
        answered |= {"half_spectrum"}
        assert_same(llava_fa.half_spectrum(given), llava_fa.half_spectrum(on_cpu(given.float())))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_spectra_of_16_bits(self, answered: set[str], dtype: torch.dtype) -> None:
        answered |= {"half_spectrum"}
        given = weight(30, 22, dtype=dtype)
        assert_same(llava_fa.half_spectrum(given), llava_fa.half_spectrum(on_cpu(given.float())))

    @pytest.mark.parametrize("rows", [1, 2, 3, 30, 31])
    def test_inverse_half_spectra(self, answered: set[str], rows: int) -> None:
        answered |= {"inverse_half_spectrum"}
        given = spectrum(rows // 2 + 1, 22)
        for view in (given, given.conj(), given.flip(0), given.to(torch.complex128)):
            expected = llava_fa.inverse_half_spectrum(on_cpu(view), rows)
            assert_same(llava_fa.inverse_half_spectrum(view, rows), expected)

    @pytest.mark.parametrize("shape", [(16, 20), (1, 5), (2, 1)])
    def test_truncated_svds(self, answered: set[str], shape: tuple[int, int]) -> None:
        answered |= {"truncated_svd"}
        given = spectrum(*shape)
        expected = llava_fa.truncated_svd(on_cpu(given), 1, seed=3, oversampling=4)
        assert_same(llava_fa.truncated_svd(given, 1, seed=3, oversampling=4), expected)
        start = torch.from_numpy(expected[2])
        warm = llava_fa.truncated_svd(
            on_cpu(given), 1, power_iterations=0, warm_start=on_cpu(start)
        )
        assert_same(llava_fa.truncated_svd(given, 1, power_iterations=0, warm_start=start), warm)

    def test_exact_svds_are_torchs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decomposed: list[torch.dtype] = []
        svd = torch.linalg.svd

        def counted(matrix: Tensor, **options: Any) -> Any:
            decomposed.append(matrix.dtype)
            return svd(matrix, **options)

        monkeypatch.setattr(torch.linalg, "svd", counted)
        given = spectrum(16, 20)
        left, values, right = llava_fa.truncated_svd(given, 3, exact=True)
        assert decomposed == [torch.complex128]
        assert left.is_contiguous()
        assert right.is_contiguous()
        assert (left.dtype, values.dtype) == (torch.complex64, torch.float32)
        expected = llava_fa.truncated_svd(on_cpu(given), 3, exact=True)
        np.testing.assert_allclose(values, expected[1], rtol=1e-6)
        np.testing.assert_allclose(
            (left * values) @ right, (expected[0] * expected[1]) @ expected[2], atol=1e-5
        )

    @pytest.mark.parametrize(("codec", "code_bits", "state_bits"), CODES)
    @pytest.mark.parametrize("shape", [(16, 20), (1, 5), (300, 3)])
    def test_codes(
        self,
        answered: set[str],
        shape: tuple[int, int],
        codec: str,
        code_bits: int,
        state_bits: int,
    ) -> None:
        answered |= {"encode", "decode"}
        given = spectrum(*shape)
        states = {"state_bits": state_bits} if state_bits else {}
        codes, scale = llava_fa.polar_encode(on_cpu(given), code_bits, codec, **states)
        found = llava_fa.polar_encode(given, code_bits, codec, **states)
        assert_same(found, (codes, scale))
        decoded = llava_fa.polar_decode(codes, scale, shape[1], code_bits, codec, **states)
        assert_same(llava_fa.polar_decode(*found, shape[1], code_bits, codec, **states), decoded)

    def test_diagonal_scales(self, answered: set[str]) -> None:
        answered |= {"diagonal_scales"}
        given = weight(90, 120) * torch.linspace(0, 3, 120).exp()
        moments = (torch.linspace(0, -4, 120).exp(), 0.01 + torch.arange(90.0) ** 2)
        expected = llava_fa.diagonal_scales(on_cpu(given), *(on_cpu(m) for m in moments))
        scale_in, scale_out = llava_fa.diagonal_scales(given, *moments)
        assert expected[0] is not None
        assert expected[1] is not None
        assert_same((scale_in, scale_out), expected)
        assert llava_fa.diagonal_scales(weight(30, 22)) == (None, None)

    @pytest.mark.parametrize("options", [{}, {"rank": 3}, {"codec": "trellis", "bits": 2}])
    def test_dense_weights(self, answered: set[str], options: dict[str, Any]) -> None:
        answered |= {"dense"}
        matrix = packed(**options)
        codes = matrix.state_dict()["codes"]
        found = device_stages.dense(matrix._packed, matrix.spec, codes, torch.device("cpu"))
        assert_same(found, matrix.dense())


# Made before any stand-in, with options that the core itself has.
def packed(**options: Any) -> CompressedMatrix:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_core, "CompressionOptions", CORE_OPTIONS)
        return compress_matrix(on_cpu(weight(30, 22)), CompressionConfig(**{"bits": 3, **options}))


CORE_OPTIONS = _core.CompressionOptions


class TestWhatTheCoreIsAsked:
    def test_weights_are_read_where_they_are(self, calls: list[tuple[str, Any]]) -> None:
        given = weight(30, 40)[:, 3:25]
        llava_fa.half_spectrum(given)
        ((name, arguments),) = calls
        assert (name, arguments["weight"]) == ("half_spectrum", given.data_ptr())
        assert arguments["row_stride"] == 40

    def test_tables_are_made_once_for_a_shape(
        self, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[tuple[int, int]] = []

        class Counted(Stages):
            def __init__(self, rows: int, cols: int, *others: Any) -> None:
                super().__init__(rows, cols, *others)
                made.append((rows, cols))

        monkeypatch.setattr(_core, "DeviceStages", Counted)
        for _ in range(3):
            llava_fa.half_spectrum(weight(30, 22))
        llava_fa.half_spectrum(weight(22, 30))
        assert made == [(30, 22), (22, 30)]
        assert len(calls) == 4


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: llava_fa.half_spectrum(weight(30)), ValueError, r"shape \(30,\), expected \(m, n\)"),
    (lambda: llava_fa.half_spectrum(weight(0, 3)), ValueError, r"expected \(m, n\)"),
    (lambda: llava_fa.half_spectrum(spectrum(3, 4)), TypeError, "expected a real float"),
    (
        lambda: llava_fa.inverse_half_spectrum(spectrum(3, 4), 6),
        ValueError,
        "3 rows, which do not belong to 6 output channels",
    ),
    (lambda: llava_fa.inverse_half_spectrum(spectrum(1, 4), 0), ValueError, "do not belong to 0"),
    (
        lambda: llava_fa.inverse_half_spectrum(weight(3, 4), 5),
        TypeError,
        "spectrum has dtype float",
    ),
    (lambda: llava_fa.truncated_svd(spectrum(5, 8), 6), ValueError, "rank is 6, expected 1 to 5"),
    (lambda: llava_fa.truncated_svd(spectrum(5, 8), 0), ValueError, "rank is 0, expected 1 to 5"),
    (
        lambda: llava_fa.truncated_svd(spectrum(5, 8), 6, exact=True),
        ValueError,
        "rank is 6, expected 1 to 5",
    ),
    (
        lambda: llava_fa.truncated_svd(weight(5, 8), 2),
        TypeError,
        "expected complex64 or complex128",
    ),
    (lambda: llava_fa.polar_encode(spectrum(5), 4), ValueError, r"expected \(rows, columns\)"),
    (lambda: llava_fa.polar_encode(spectrum(0, 5), 4), ValueError, r"expected \(rows, columns\)"),
]


@pytest.mark.usefixtures("calls")
class TestRefusals:
    @pytest.mark.parametrize(("call", "error", "message"), REFUSED)
    def test_what_does_not_fit(
        self, call: Callable[[], Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            call()

    @pytest.mark.parametrize(
        ("codes", "rows"), [((5, 9), 5), ((5, 4), 6), ((5,), 5), ((0, 4), 0), ((5, 4, 1), 5)]
    )
    def test_codes_of_another_shape(self, codes: tuple[int, ...], rows: int) -> None:
        with pytest.raises(ValueError, match="codes have shape"):
            llava_fa.polar_decode(torch.zeros(codes, dtype=torch.uint8), torch.ones(rows), 8, 4)

    def test_what_no_decomposition_has(self) -> None:
        given = spectrum(5, 8)
        given[2, 3] = complex("nan")
        with pytest.raises(NonFiniteError, match="matrix holds NaN or infinity"):
            llava_fa.truncated_svd(given, 2, exact=True)

    def test_tensors_of_two_places(self) -> None:
        codes = torch.zeros(5, 4, dtype=torch.uint8)
        scales: Any = np.ones(5, np.float16)
        with pytest.raises(ValueError, match=r"row_scale is on the CPU, the codes on cpu: move"):
            llava_fa.polar_decode(codes, scales, 8, 4)
        with pytest.raises(ValueError, match=r"row_scale is on meta, the codes on cpu: move"):
            llava_fa.polar_decode(codes, torch.ones(5, device="meta"), 8, 4)

    def test_graphs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(
            DeviceError, match="a stage waits for the GPU and so cannot be captured"
        ):
            llava_fa.half_spectrum(weight(4, 4))

    def test_out_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> Tensor:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB")

        given = weight(4, 4)
        monkeypatch.setattr(Stages, "needed", 5 << 20)
        monkeypatch.setattr(torch, "empty", full)
        expected = (
            r"2 GiB; the stage takes 5 MiB beside .*: free memory of the GPU, or compute on the CPU"
        )
        with pytest.raises(DeviceMemoryError, match=expected):
            llava_fa.half_spectrum(given)
        monkeypatch.setattr(torch.linalg, "svd", full)
        with pytest.raises(DeviceMemoryError, match=r"decomposition of \(5, 8\) needs more"):
            llava_fa.truncated_svd(spectrum(5, 8), 2, exact=True)


class TestCore:
    """Of the real core, which checks what it can before it looks for a device."""

    def stages(self, rows: int = 30, oversampling: int = 2, **options: Any) -> Any:
        arguments = {
            "codec": "ring",
            "code_bits": 4,
            "rank": 0,
            "factor_bits": 16,
            "odc": "none",
            "signs": False,
            "max_alternations": 0,
            "seed": 0,
            "state_bits": 0,
            "unbiased": False,
            "feedback": False,
        }
        made: Any = _core.CompressionOptions(**{**arguments, **options})
        return _core.DeviceStages(rows, 20, made, oversampling, 0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 17}, "rank is 17, expected 0 to 16"),
            ({"rows": 0}, r"shape is \(0, 20\), expected 1 to"),
            ({"code_bits": 11}, "code_bits is 11"),
            ({"codec": "trellis", "state_bits": 3}, "state_bits is 3"),
            ({"codec": "trellis", "state_bits": 17}, "state_bits is 17"),
            ({"oversampling": -1}, "oversampling must not be negative"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.stages(**options)

    @without_gpu
    def test_no_gpu(self) -> None:
        with pytest.raises(DeviceError, match="no GPU can be used: "):
            self.stages()


class TestPlanning:
    """Which computes on the CPU."""

    @pytest.mark.parametrize("measure", [profile_matrix, output_noise_gain])
    def test_weights_on_a_gpu_are_refused(self, measure: Callable[..., Any]) -> None:
        with pretend_gpu() as gpu, pytest.raises(ValueError, match=r"tensor is on cuda:0, .* CPU"):
            measure(weight(30, 22).to(gpu), CompressionConfig(bits=3), second_moment=torch.ones(22))


class TestDenseOnADevice:
    def test_the_cpu(self) -> None:
        matrix = packed()
        found = matrix.dense(device="cpu")
        assert isinstance(found, Tensor)
        assert torch.equal(found, torch.from_numpy(matrix.dense()))

    @pytest.mark.parametrize("device", ["meta", "xpu", ""])
    def test_unknown_ones(self, device: str) -> None:
        with pytest.raises(ValueError, match="expected 'cpu', 'cuda' or 'cuda:0'"):
            packed().dense(device=device)

    @without_gpu
    def test_no_gpu(self) -> None:
        with pytest.raises(DeviceError, match="no GPU can be used: "):
            packed().dense(device="cuda")

    def test_layers_decode_where_they_are(self) -> None:
        matrix = packed()
        expected = torch.from_numpy(matrix.dense())
        assert torch.equal(FourierLinear.from_matrix(matrix).dense(), expected)

    @without_gpu
    def test_layers_on_a_gpu_say_why_they_cannot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        layer = FourierLinear.from_matrix(packed())
        with pretend_gpu() as gpu:
            layer.to(gpu)
            with pytest.raises(DeviceError, match="no GPU can be used: "):
                layer.dense()
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            with pytest.raises(DeviceError, match="decoding waits for the GPU and so cannot be"):
                layer.dense()

"""Products on GPUs as far as no GPU is needed: availability, refusals, and what is launched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_stand_ins import Stream, as_a_gpu, without_gpu
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import llava_fa
from llava_fa import (
    CompressionConfig,
    DeviceError,
    DeviceMemoryError,
    compress_matrix,
    device_ops,
    packed_ops,
)
from llava_fa.nn import FourierLinear

SHAPE = (30, 22)
CUDA_PART = Path(llava_fa.__file__).with_name("libllava_fa_cuda.so")


def layer() -> FourierLinear:
    weight = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    return FourierLinear.from_matrix(compress_matrix(weight, CompressionConfig(bits=3)))


def reason_in(folder: Path, **environment: str) -> str:
    """Ask a process that runs in a folder, whose packages come first."""
    finished = subprocess.run(
        [sys.executable, "-c", "import llava_fa; print(llava_fa.cuda_unavailable_reason())"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout


class Launches:
    """Stands for the core's product, and keeps what it was asked to launch."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def workspace_bytes(self, activations: int, half: bool) -> int:
        return 64 * activations

    def multiply(self, **arguments: Any) -> None:
        self.calls.append(arguments)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    as_a_gpu(monkeypatch)
    return Launches()


def on_device(product: Any) -> device_ops.LayerOnDevice:
    zeros = torch.zeros(16, dtype=torch.uint8)
    stream: Any = Stream
    return device_ops.LayerOnDevice(SHAPE, zeros, zeros, product, stream)


class TestAvailability:
    def test_the_flag_and_the_reason_agree(self) -> None:
        reason = llava_fa.cuda_unavailable_reason()
        assert llava_fa.cuda_available() == (reason is None)
        assert llava_fa._core.cuda_device_count() == (0 if reason else torch.cuda.device_count())

    @without_gpu
    def test_the_reason_names_a_remedy(self) -> None:
        reason = llava_fa.cuda_unavailable_reason()
        assert reason is not None
        assert any(word in reason for word in ("install", "build", "update", "look at"))

    @without_gpu
    def test_a_product_on_a_gpu_gives_the_reason(self) -> None:
        with pytest.raises(DeviceError, match="no GPU can be used: ") as caught:
            compress_matrix(np.eye(8, dtype=np.float32)).on_device(0)
        assert str(llava_fa.cuda_unavailable_reason()) in str(caught.value)

    def test_a_missing_and_a_damaged_cuda_part_are_told_apart(self, tmp_path: Path) -> None:
        installed = Path(llava_fa.__file__).parent
        package = tmp_path / "llava_fa"
        package.mkdir()
        for file in installed.iterdir():
            if file.is_file() and not file.name.startswith("libllava_fa_cuda"):
                shutil.copy(file, package / file.name)
        shutil.copytree(installed / "fmvr", package / "fmvr")
        assert "built without its CUDA part" in reason_in(tmp_path)
        assert "-DLLAVA_FA_CUDA=ON" in reason_in(tmp_path)
        (package / "libllava_fa_cuda.so").write_bytes(b"nothing")
        assert "cannot load" in reason_in(tmp_path)
        assert "reinstall llava-fa" in reason_in(tmp_path)

    @pytest.mark.skipif(
        not CUDA_PART.exists() or shutil.which("cc") is None, reason="no CUDA part, or no compiler"
    )
    def test_an_old_driver(self, tmp_path: Path) -> None:
        """A library that says nothing but its version stands for the driver."""
        source = tmp_path / "driver.c"
        source.write_text("int cuDriverGetVersion(int *version) { *version = 9020; return 0; }")
        driver = str(tmp_path / "libcuda.so.1")
        subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", driver], check=True)
        reason = reason_in(tmp_path, LD_LIBRARY_PATH=str(tmp_path))
        assert "the NVIDIA driver supports CUDA 9.2, this library needs" in reason
        assert "update the driver" in reason


class TestErrors:
    def test_family(self) -> None:
        assert issubclass(DeviceError, llava_fa.LlavaFaError)
        assert issubclass(DeviceMemoryError, DeviceError)
        assert issubclass(DeviceMemoryError, torch.OutOfMemoryError)

    def test_activations_and_layer_on_different_devices(self) -> None:
        class Elsewhere(torch.Tensor):
            """Says that it is on a device that this machine need not have."""

            device = torch.device("cuda:1")

        x = torch.zeros(2, SHAPE[1]).as_subclass(Elsewhere)
        expected = r"the activations are on cuda:1, the layer on cpu: move one of them"
        with pytest.raises(ValueError, match=expected):
            layer()(x)
        with pytest.raises(ValueError, match=expected):
            device_ops.multiply(on_device(Launches()), x, torch.float32)

    def test_tensors_of_one_layer_on_different_devices(self) -> None:
        tensors = [torch.zeros(2), torch.zeros(2, device="meta")]
        with pytest.raises(ValueError, match=r"on cpu, meta: move the layer with \.to\(\)"):
            device_ops.layer_on_device(tensors, 0, pytest.fail)

    def test_codes_that_are_not_contiguous(self) -> None:
        with pytest.raises(ValueError, match=r"not contiguous: assign codes\.contiguous\(\)"):
            device_ops.layer_on_device([torch.zeros(4, 4).T], 0, pytest.fail)

    def test_tensors_of_inference_mode(self) -> None:
        with torch.inference_mode():
            tensors = [torch.zeros(4)]
        with pytest.raises(DeviceError, match=r"outside of torch\.inference_mode\(\)"):
            device_ops.layer_on_device(tensors, 0, pytest.fail)

    def test_nothing_is_prepared_while_a_graph_is_captured(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(DeviceError, match="call the layer once before"):
            device_ops.layer_on_device([torch.zeros(4)], 0, pytest.fail)

    def test_out_of_memory(self, monkeypatch: pytest.MonkeyPatch, launches: Launches) -> None:
        def full(*_: Any, **__: Any) -> Tensor:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB")

        x = torch.zeros(2, SHAPE[1])
        monkeypatch.setattr(torch, "empty", full)
        with pytest.raises(DeviceMemoryError, match="allocate 2 GiB; multiply fewer activations"):
            device_ops.multiply(on_device(launches), x, torch.float32)
        assert not launches.calls


class TestLaunches:
    @pytest.mark.parametrize(
        ("x", "stride"),
        [
            (torch.zeros(5, 22), 22),
            (torch.zeros(5, 40)[:, :22], 40),  # rows apart are read where they are
            (torch.zeros(22), 22),
            (torch.zeros(1, 22, 3)[..., 0], 22),
            (torch.zeros(22, 5).T, 22),
            (torch.zeros(1, 22).expand(5, 22), 22),
            (torch.zeros(2, 3, 22), 22),
        ],
    )
    def test_layouts(self, launches: Launches, x: Tensor, stride: int) -> None:
        y = device_ops.multiply(on_device(launches), x, torch.float32)
        assert y.shape == (*x.shape[:-1], SHAPE[0])
        (call,) = launches.calls
        assert (call["count"], call["row_stride"]) == (x.numel() // 22, stride)
        in_place = x.stride(-1) == 1 and (x.ndim != 2 or x.stride(0) >= 22 or x.shape[0] == 1)
        assert (call["activations"] == x.data_ptr()) == in_place
        assert (call["output"], call["stream"]) == (y.data_ptr(), 7)

    @pytest.mark.parametrize(
        ("dtype", "half"), [(torch.float32, False), (torch.bfloat16, True), (torch.float16, True)]
    )
    def test_types(self, launches: Launches, dtype: torch.dtype, half: bool) -> None:
        device_ops.multiply(on_device(launches), torch.zeros(2, 22, dtype=dtype), torch.bfloat16)
        (call,) = launches.calls
        assert call["activation_type"] == str(dtype).removeprefix("torch.")
        assert (call["output_type"], call["half"]) == ("bfloat16", half)

    def test_nothing_to_multiply(self, launches: Launches) -> None:
        y = device_ops.multiply(on_device(launches), torch.zeros(3, 0, 22), torch.float16)
        assert y.shape == (3, 0, SHAPE[0])
        assert not launches.calls

    def test_constants_are_kept_for_other_streams(
        self, launches: Launches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept_for: list[Any] = []
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda _, stream: kept_for.append(stream)
        )
        layer, x = on_device(launches), torch.zeros(1, SHAPE[1])
        device_ops.multiply(layer, x, torch.float32)
        assert kept_for == []
        other = type("Other", (), {"cuda_stream": 8})
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: other)
        device_ops.multiply(layer, x, torch.float32)
        assert kept_for == [other]
        assert [call["stream"] for call in launches.calls] == [7, 8]

    def test_dense_multiplies_unit_vectors(
        self, monkeypatch: pytest.MonkeyPatch, launches: Launches
    ) -> None:
        weight = torch.arange(30.0 * 22).reshape(SHAPE)
        monkeypatch.setattr(device_ops, "_DENSE_ROWS", 8)
        monkeypatch.setattr(device_ops, "multiply", lambda layer, x, dtype: x @ weight.T)
        assert torch.equal(device_ops.dense(on_device(launches)), weight.T)

    def test_compilers_see_shape_type_and_device(self) -> None:
        packed, mode = layer(), FakeTensorMode()

        def on_gpu(tensor: Tensor) -> Tensor:
            return FakeTensor(mode, tensor.to("meta"), torch.device("cuda:0"))

        tensors = [on_gpu(tensor) for tensor in packed.stored_tensors().values()]
        x = on_gpu(torch.empty(2, 3, 22, dtype=torch.bfloat16))
        with mode:
            y = packed_ops.multiply(x, tensors, packed._description)
        assert (y.shape, y.dtype, y.device) == ((2, 3, 30), torch.float32, torch.device("cuda:0"))

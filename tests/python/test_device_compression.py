"""Compression on GPUs as far as no GPU is needed: refusals, and what is asked of the core.

``tests/cpp/test_cuda_compression.cpp`` runs the kernels, ``tests/cuda`` all of it on a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from core_stand_ins import Compressor, as_a_gpu, weight, without_gpu
from pretend_gpu import pretend_gpu
from torch import Tensor

import llava_fa
from conftest import DATA, UP, compress, edit_tensor
from llava_fa import (
    CompressionConfig,
    DeviceError,
    DeviceMemoryError,
    NonFiniteError,
    _core,
    compress_checkpoint,
    compress_matrix,
    device_compression,
)
from llava_fa.cli import main
from llava_fa.device_compression import compression_device
from llava_fa.matrix import core_options


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of a GPU; tensors count as being there."""
    Compressor.calls = []
    monkeypatch.setattr(_core, "DeviceCompressor", Compressor)
    as_a_gpu(monkeypatch, "llava_fa.matrix")
    return Compressor.calls


class TestWeights:
    @pytest.mark.parametrize(
        ("given", "stride", "in_place"),
        [
            (weight(30, 22), 22, True),
            (weight(30, 40)[:, 3:25], 40, True),  # rows apart are read where they are
            (weight(22, 30).T, 22, False),
            (weight(1, 22).expand(30, 22), 22, False),
            (weight(1, 22), 22, True),
            (weight(30, 22, dtype=torch.bfloat16), 22, True),
            (weight(30, 22, dtype=torch.float16), 22, True),
            (weight(30, 22, dtype=torch.float64), 22, False),
        ],
    )
    def test_layouts_and_types(
        self, calls: list[dict[str, Any]], given: Tensor, stride: int, in_place: bool
    ) -> None:
        config = CompressionConfig(bits=3)
        matrix = compress_matrix(given, config)
        (call,) = calls
        assert (call["row_stride"], call["stream"]) == (stride, 7)
        assert (call["weight"] == given.data_ptr()) == in_place
        expected = compress_matrix(given.float().numpy(), config)
        assert torch.equal(matrix.dense(), torch.from_numpy(expected.dense()))
        assert matrix.objective == expected.objective

    def test_relative_error_is_that_on_the_cpu(
        self, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(device_compression, "_ERROR_ROWS", 7)
        given = weight(30, 22, dtype=torch.bfloat16)
        matrix = compress_matrix(given)
        expected = matrix.relative_error(given.float().numpy())
        assert matrix.relative_error(given) == pytest.approx(expected, rel=1e-12)
        zeros = torch.zeros(30, 22)
        assert compress_matrix(zeros).relative_error(zeros) == 0.0
        with pytest.raises(ValueError, match=r"weight has shape \(3, 4\), expected \(30, 22\)"):
            matrix.relative_error(weight(3, 4))

    def test_options_and_moments_are_handed_on(self, calls: list[dict[str, Any]]) -> None:
        given, moment = weight(30, 22), torch.arange(1.0, 23.0) ** 3
        config = CompressionConfig(bits=2, codec="trellis", seed=5, row_scale="unbiased")
        found = compress_matrix(given, config, input_second_moment=moment)
        expected = compress_matrix(given.numpy(), config, input_second_moment=moment.numpy())
        assert found.spec == expected.spec
        assert torch.equal(found.dense(), torch.from_numpy(expected.dense()))


@pytest.mark.usefixtures("calls")
class TestRefusals:
    def test_shapes(self) -> None:
        for bad in (weight(30), weight(2, 3, 4), weight(0, 4), weight(4, 0)):
            with pytest.raises(ValueError, match=r"weight has shape .*, expected \(m, n\)"):
                compress_matrix(bad)

    def test_dtypes(self) -> None:
        for bad in (torch.zeros(4, 4, dtype=torch.int32), torch.zeros(4, 4, dtype=torch.cfloat)):
            with pytest.raises(TypeError, match="expected a real float"):
                compress_matrix(bad)

    def test_graphs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(DeviceError, match="cannot be captured in a graph"):
            compress_matrix(weight(4, 4))

    def test_out_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> Tensor:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB")

        given = weight(4, 4)
        monkeypatch.setattr(Compressor, "needed", 5 << 20)
        monkeypatch.setattr(torch, "empty", full)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 20, 80 << 30))
        expected = r"2 GiB; compressing \(4, 4\) takes 5 MiB beside .*, 3 MiB are free: free memory"
        with pytest.raises(DeviceMemoryError, match=expected):
            compress_matrix(given)
        monkeypatch.setattr(Tensor, "contiguous", full)
        with pytest.raises(DeviceMemoryError, match=expected):
            compress_matrix(weight(4, 8)[:, ::2])
        monkeypatch.setattr(Tensor, "to", full)
        with pytest.raises(DeviceMemoryError, match="2 GiB; the weight takes 0 MiB: free memory"):
            device_compression.to_device(given, torch.device("cpu"))

    def test_out_of_memory_says_what_would_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> Tensor:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB")

        def workspace_bytes(compressor: Compressor, full_moment: bool) -> int:
            return (1 + 4 * compressor.options.rank + 2 * full_moment) << 20

        def free(mebibytes: int) -> None:
            memory = (mebibytes << 20, 80 << 30)
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: memory)

        monkeypatch.setattr(Compressor, "workspace_bytes", workspace_bytes)
        monkeypatch.setattr(device_compression, "core_options", lambda config: config)
        monkeypatch.setattr(torch, "empty", full)
        config = CompressionConfig(bits=3, rank=1)

        def message() -> str:
            with pytest.raises(DeviceMemoryError) as caught:
                compress_matrix(weight(4, 4), config, input_second_moment=torch.eye(4))
            return str(caught.value)

        free(5)
        assert "takes 7 MiB beside the weight, 5 MiB are free, " in message()
        assert "with calibration='diagonal' it would take 5 MiB" in message()
        assert "with rank=0 it would take 3 MiB" in message()
        assert "with rank=0 and calibration='diagonal' it would take 1 MiB: free" in message()
        free(2)
        assert "with calibration='diagonal' it" not in message()
        assert "with rank=0 it" not in message()
        assert "with rank=0 and calibration='diagonal' it would take 1 MiB: free" in message()
        free(0)
        assert "0 MiB are free: free memory of the GPU, or compress on the CPU" in message()


class TestCore:
    """Of the real core, which checks what it can before it looks for a device."""

    def compressor(self, rows: int = 30, **options: Any) -> Any:
        config = CompressionConfig(bits=3).replace(**options)
        return _core.DeviceCompressor(rows, 20, core_options(config), 0)

    def test_ranks(self) -> None:
        with pytest.raises(ValueError, match="rank is 17, expected 0 to 16"):
            self.compressor(rank=17)

    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"shape is \(0, 20\), expected 1 to"):
            self.compressor(rows=0)

    @without_gpu
    def test_no_gpu(self) -> None:
        with pytest.raises(DeviceError, match="no GPU can be used: "):
            self.compressor()


class TestDevices:
    def test_the_cpu(self) -> None:
        assert compression_device("cpu") == torch.device("cpu")

    @pytest.mark.parametrize("device", ["meta", "xpu", "cuda:x", "", "gpu"])
    def test_unknown_ones(self, device: str) -> None:
        with pytest.raises(ValueError, match="expected 'cpu', 'cuda' or 'cuda:0'"):
            compression_device(device)

    @without_gpu
    def test_no_gpu(self, llava_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DeviceError, match="device is 'cuda', but no GPU can be used: "):
            compress_checkpoint(llava_folder, tmp_path / "out", device="cuda")
        assert not (tmp_path / "out").exists()

    def test_torch_without_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device_compression, "cuda_unavailable_reason", lambda: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(DeviceError, match=r"torch .* cannot use a GPU: install torch for CUDA"):
            compression_device("cuda")

    def test_a_number_that_the_machine_does_not_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device_compression, "cuda_unavailable_reason", lambda: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert compression_device("cuda") == torch.device("cuda:0")
        assert compression_device("cuda:1") == torch.device("cuda:1")
        with pytest.raises(ValueError, match="device is 'cuda:2', expected 'cuda:0' to 'cuda:1'"):
            compression_device("cuda:2")


class TestCheckpoints:
    @pytest.fixture(autouse=True)
    def gpu(
        self, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]]
    ) -> Iterator[torch.device]:
        """A machine that says it has one."""
        place = torch.device("cuda:0")
        monkeypatch.setattr("llava_fa.compress.compression_device", lambda device: place)
        monkeypatch.setattr("llava_fa.compress.to_device", lambda weight, device: weight)
        monkeypatch.setattr("llava_fa.in_flight.own_streams", lambda *_: lambda: None)
        with pretend_gpu() as device:
            yield device

    def test_every_matrix_is_compressed_there(
        self, llava_folder: Path, tmp_path: Path, calls: list[dict[str, Any]]
    ) -> None:
        config = CompressionConfig(bits=3)
        report = compress(llava_folder, tmp_path / "out", config, device="cuda")
        compressed = [row for row in report.rows if row.spec]
        assert len(calls) == len(compressed) > 10
        assert all(0 < row.relative_error < 0.06 for row in compressed)

    def test_a_run_is_not_continued_on_another_device(
        self, llava_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt

        output, config = tmp_path / "out", CompressionConfig(bits=3)
        monkeypatch.setattr("llava_fa.compress.check_limit", stop)
        with pytest.raises(KeyboardInterrupt):
            compress(llava_folder, output, config, device="cuda")
        monkeypatch.setattr(
            "llava_fa.compress.compression_device", lambda device: torch.device("cpu")
        )
        with pytest.raises(llava_fa.ResumeError):
            compress(llava_folder, output, config)

    @pytest.mark.parametrize("calibrated", [False, True])
    def test_an_interrupted_run_continues_to_the_same_bytes(
        self, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrated: bool
    ) -> None:
        arguments = {"calibration_data": DATA} if calibrated else {}
        arguments |= {"config": CompressionConfig(bits=3), "device": "cuda"}
        whole, output = tmp_path / "whole", tmp_path / "out"
        compress(llama_folder, whole, **arguments)

        checked: list[str] = []

        def stop_later(name: str, *_: Any) -> None:
            checked.append(name)
            if len(checked) == 6:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("llava_fa.compress.check_limit", stop_later)
            with pytest.raises(KeyboardInterrupt):
                compress(llama_folder, output, **arguments)
        assert not (output / "model.safetensors").exists()
        compress(llama_folder, output, **arguments)
        for file in whole.iterdir():
            assert (output / file.name).read_bytes() == file.read_bytes(), file.name

    def test_what_is_not_finite_is_named(self, llama: Path, output: Path) -> None:
        edit_tensor(llama, f"{UP}.weight", lambda weight: weight.fill_(float("nan")))
        with pytest.raises(NonFiniteError, match=rf"tensor {UP}\.weight: weight\[0, 0\] is nan"):
            compress(llama, output, device="cuda")

    def test_ranks_are_handed_on(self, llava_folder: Path, tmp_path: Path) -> None:
        report = compress(
            llava_folder, tmp_path / "out", CompressionConfig(bits=3, rank=2), device="cuda"
        )
        assert {row.spec.rank for row in report.rows if row.spec} == {2}

    @pytest.mark.parametrize(("calibration", "kind"), [("hessian", "full"), ("diagonal",) * 2])
    def test_second_moments_are_handed_on(
        self,
        llama_folder: Path,
        tmp_path: Path,
        calls: list[dict[str, Any]],
        calibration: str,
        kind: str,
    ) -> None:
        config = CompressionConfig(calibration=calibration)
        report = compress(
            llama_folder, tmp_path / "out", config, calibration_data=DATA, device="cuda"
        )
        assert {row.second_moment for row in report.rows if row.spec} == {kind}
        full = kind == "full"
        for call in calls:
            assert call["input_second_moment"].ndim == 1 + full
            assert call["workspace_bytes"] == 64 * (1 + full)


@without_gpu
def test_the_command_line_says_why(
    llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["compress", str(llava_folder), str(tmp_path / "out"), "--device", "cuda"])
    assert status != 0
    assert "no GPU can be used: " in capsys.readouterr().err

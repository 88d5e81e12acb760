"""A compression that was interrupted or ran out of disk continues, with the same bytes."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import (
    UP,
    compress,
    edit_tensor,
    folder_bytes,
    llama_model,
    uneven_inputs,
)
from llava_fa import CompressedMatrix, CompressionConfig, writer
from llava_fa.errors import (
    CheckpointError,
    ResumeError,
)
from llava_fa.partial import PARTIAL_NAME


class TestDiskFull:
    @pytest.mark.parametrize("allowed", [0, 1, 5, 30])
    def test_says_so_and_can_be_resumed(
        self,
        llama: Path,
        output: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        allowed: int,
    ) -> None:
        compress(llama, tmp_path / "whole")
        original, left = writer._write, [allowed]

        def full(file: Any, data: Any) -> None:
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            left[0] -= 1
            original(file, data)

        monkeypatch.setattr(writer, "_write", full)
        with pytest.raises(CheckpointError, match=r"disk is full.*run the same command again"):
            compress(llama, output)
        assert not list(output.rglob("*.writing"))
        monkeypatch.setattr(writer, "_write", original)
        compress(llama, output)
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")


class TestResume:
    def interrupt(self, source: Path, output: Path, after: int, **options: Any) -> None:
        """Stop a run with Ctrl-C after some writes."""
        with pytest.MonkeyPatch.context() as patch:
            original, left = writer._write, [after]

            def stop(file: Any, data: Any) -> None:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                original(file, data)

            patch.setattr(writer, "_write", stop)
            with pytest.raises(KeyboardInterrupt):
                compress(source, output, **options)

    def test_interrupted_with_several_shards(
        self, llava_folder: Path, output: Path, tmp_path: Path
    ) -> None:
        compress(llava_folder, tmp_path / "whole", max_shard_size="20KB")
        self.interrupt(llava_folder, output, 200, max_shard_size="20KB")
        assert list((output / PARTIAL_NAME).glob("shard-*.json"))
        report = compress(llava_folder, output, max_shard_size="20KB")
        assert len(report.compressed) == 21
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")

    def test_finished_tensors_are_not_compressed_again(
        self, llama: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.interrupt(llama, output, 20)
        parts = len(list((output / PARTIAL_NAME).glob("0*.json")))
        assert parts >= 1
        from llava_fa import compress as module

        calls = []
        original = module.compress_matrix

        def counted(*args: Any, **options: Any) -> CompressedMatrix:
            calls.append(args)
            return original(*args, **options)

        monkeypatch.setattr(module, "compress_matrix", counted)
        compress(llama, output)
        assert len(calls) == 7 - parts

    def test_other_configuration_is_refused(self, llama: Path, output: Path) -> None:
        self.interrupt(llama, output, 20)
        with pytest.raises(ResumeError, match=r"config\.bits: 4\.0 then, 3.*overwrite"):
            compress(llama, output, CompressionConfig(bits=3))

    def test_other_recipe_is_refused(self, llama: Path, output: Path) -> None:
        self.interrupt(llama, output, 20)
        with pytest.raises(ResumeError, match="recipe"):
            compress(llama, output, recipe=[{"match": "mlp", "skip": True}])

    def test_other_source_is_refused(self, llama: Path, output: Path) -> None:
        self.interrupt(llama, output, 20)
        edit_tensor(llama, f"{UP}.weight", lambda tensor: tensor + 1)
        with pytest.raises(ResumeError, match=r"source\.model\.safetensors"):
            compress(llama, output)

    def test_other_calibration_is_refused(self, llama: Path, output: Path) -> None:
        data = [{"input_ids": torch.tensor([[1, 2, 3]])}]
        self.interrupt(llama, output, 20, calibration_data=data)
        with pytest.raises(ResumeError, match="calibration"):
            compress(llama, output)

    def test_calibration_is_not_run_again(
        self, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, data = tmp_path / "source", [{"input_ids": torch.tensor([[1, 2, 3]])}]
        uneven_inputs(llama_model()).save_pretrained(source)
        compress(source, tmp_path / "whole", calibration_data=data)
        self.interrupt(source, output, 20, calibration_data=data)
        from llava_fa import compress as module

        def never(*args: Any) -> None:
            raise AssertionError("the calibration pass ran again")

        monkeypatch.setattr(module, "capture_second_moments", never)
        report = compress(source, output, calibration_data=data)
        assert any(row.spec.channel_scale_in for row in report.compressed if row.spec)
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")

    def test_overwrite_starts_anew(self, llama: Path, output: Path) -> None:
        self.interrupt(llama, output, 20)
        report = compress(llama, output, CompressionConfig(bits=3), overwrite=True)
        assert all(row.spec.code_bits == 6 for row in report.compressed if row.spec)

    def test_no_resume_starts_anew(self, llama: Path, output: Path, tmp_path: Path) -> None:
        self.interrupt(llama, output, 20)
        compress(llama, output, CompressionConfig(bits=3), resume=False)
        compress(llama, tmp_path / "whole", CompressionConfig(bits=3))
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")

    def test_a_damaged_finished_shard_is_made_again(
        self, llava_folder: Path, output: Path, tmp_path: Path
    ) -> None:
        compress(llava_folder, tmp_path / "whole", max_shard_size="20KB")
        self.interrupt(llava_folder, output, 200, max_shard_size="20KB")
        shard = output / PARTIAL_NAME / "shard-00001.safetensors"
        damaged = bytearray(shard.read_bytes())
        damaged[-1] ^= 1
        shard.write_bytes(bytes(damaged))
        compress(llava_folder, output, max_shard_size="20KB")
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")

    def test_a_finished_output_is_recognized(self, llama: Path, output: Path) -> None:
        first = compress(llama, output)
        before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
        assert compress(llama, output) == first
        assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
        with pytest.raises(CheckpointError, match="not empty"):
            compress(llama, output, CompressionConfig(bits=3))

"""A compression that was interrupted or ran out of disk continues, with the same bytes."""

from __future__ import annotations

import errno
import subprocess
import sys
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
from llava_fa.decompress import decompress_checkpoint
from llava_fa.errors import (
    CheckpointError,
    DiskFullError,
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
        said = r"disk is full while writing .+, which takes .+ MB .*run the same command again"
        with pytest.raises(DiskFullError, match=said):
            compress(llama, output)
        assert not list(output.rglob("*.writing"))
        monkeypatch.setattr(writer, "_write", original)
        compress(llama, output)
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")

    def test_names_the_tensor_and_its_size(
        self, llama: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = writer._write

        def full(file: Any, data: Any) -> None:
            if ".part." in file.name:
                raise OSError(errno.ENOSPC, "No space left on device")
            original(file, data)

        monkeypatch.setattr(writer, "_write", full)
        said = r"while writing model\.layers\.\S+, which takes 0\.000"
        with pytest.raises(DiskFullError, match=said):
            compress(llama, output)


HOLDER = """
import sys
from pathlib import Path
from llava_fa.partial import PartialRun
with PartialRun(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


class TestLock:
    def test_a_second_process_is_kept_out_until_the_first_is_killed(
        self, llama: Path, packed_folder: Path, output: Path, tmp_path: Path
    ) -> None:
        compress(llama, tmp_path / "whole")
        arguments = [sys.executable, "-c", HOLDER, str(output)]
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            said = rf"{output}: another process is writing"
            for attempt in (
                lambda: compress(llama, output),
                lambda: compress(llama, output, overwrite=True),
                lambda: decompress_checkpoint(packed_folder, output, progress=False),
            ):
                with pytest.raises(CheckpointError, match=said):
                    attempt()
            other.kill()
        assert (output / PARTIAL_NAME / "lock").exists()
        compress(llama, output)
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")

    def test_nothing_is_left_in_a_folder_that_cannot_be_used(
        self, llama: Path, output: Path
    ) -> None:
        output.mkdir()
        (output / "precious.txt").write_text("mine")
        with pytest.raises(CheckpointError, match="not empty"):
            compress(llama, output)
        assert [path.name for path in output.iterdir()] == ["precious.txt"]


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

    def test_a_finished_calibration_is_not_run_again(
        self, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, data = tmp_path / "source", [{"input_ids": torch.tensor([[1, 2, 3]])}]
        uneven_inputs(llama_model()).save_pretrained(source)
        compress(source, tmp_path / "whole", calibration_data=data)
        self.interrupt(source, output, 20, calibration_data=data)
        from llava_fa import calibration_run as module

        def never(*args: Any) -> None:
            raise AssertionError("the calibration pass ran again")

        monkeypatch.setattr(module, "load_dense_model", never)
        report = compress(source, output, calibration_data=data)
        assert all(row.second_moment == "full" for row in report.compressed)
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

"""Inspecting and verifying a compressed folder without its model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import edit_tensor, llava_model, read_all
from llava_fa.compress import compress_checkpoint
from llava_fa.errors import CheckpointError, FormatError
from llava_fa.shards import Checkpoint
from llava_fa.verify import inspect_checkpoint, verify_checkpoint

UP = "model.language_model.layers.0.mlp.up_proj"
EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture
def without_manifest(damaged: Path) -> Path:
    """The same, without recorded hashes: what a folder looks like that others copied in part."""
    (damaged / "llava_fa_manifest.json").unlink()
    return damaged


def flip_byte(folder: Path, name: str) -> None:
    """Flip one bit in the middle of a tensor's stored bytes."""
    entry = Checkpoint.open(folder).tensors[name]
    data = bytearray(entry.file.read_bytes())
    data[entry.offset + entry.nbytes // 2] ^= 1
    entry.file.write_bytes(bytes(data))


def failed_tensors(folder: Path, source: Path | None = None) -> set[str]:
    return {problem.tensor for problem in verify_checkpoint(folder, source).problems}


class TestInspect:
    def test_equals_the_report(self, llava_folder: Path, tmp_path: Path) -> None:
        output = tmp_path / "packed"
        report = compress_checkpoint(llava_folder, output, progress=False)
        found = inspect_checkpoint(output)
        assert {row.name: row for row in found.rows} == {row.name: row for row in report.rows}

    def test_without_manifest_the_headers_tell(self, without_manifest: Path) -> None:
        report = inspect_checkpoint(without_manifest)
        assert len(report.compressed) == 21
        stored = sum(t.numel() * t.element_size() for t in read_all(without_manifest).values())
        assert report.nbytes_after == stored
        assert report.relative_error is None
        assert "unknown" in report.summary_table()

    def test_dense_folder(self, llava_folder: Path) -> None:
        with pytest.raises(CheckpointError, match="not a checkpoint that llava-fa compressed"):
            inspect_checkpoint(llava_folder)


class TestIntact:
    def test_alone(self, packed_folder: Path) -> None:
        result = verify_checkpoint(packed_folder)
        assert result.ok
        assert result.hashed
        assert json.loads(result.to_json())["ok"] is True

    @pytest.mark.parametrize("source", ["llava_folder"])
    def test_with_source(
        self, packed_folder: Path, source: str, request: pytest.FixtureRequest
    ) -> None:
        result = verify_checkpoint(packed_folder, request.getfixturevalue(source))
        assert result.ok
        recorded = inspect_checkpoint(packed_folder)
        for row, expected in zip(result.report.compressed, recorded.compressed, strict=True):
            assert row.relative_error == pytest.approx(expected.relative_error, rel=1e-3)

    def test_without_manifest_errors_are_still_measured(
        self, without_manifest: Path, llava_folder: Path
    ) -> None:
        result = verify_checkpoint(without_manifest, llava_folder)
        assert result.ok
        assert not result.hashed
        assert all(row.relative_error is not None for row in result.report.compressed)

    def test_progress_reaches_the_end(self, packed_folder: Path) -> None:
        steps: list[tuple[int, int]] = []
        verify_checkpoint(packed_folder, progress=lambda done, total: steps.append((done, total)))
        assert steps[-1][0] == steps[-1][1] == len(steps)


class TestDamage:
    @pytest.mark.parametrize(
        "name", [f"{UP}.codes", f"{UP}.row_scale", f"{UP}.matrix_scale", EMBEDDING]
    )
    def test_a_flipped_bit_names_the_tensor(self, damaged: Path, name: str) -> None:
        flip_byte(damaged, name)
        assert name in failed_tensors(damaged)

    def test_a_flipped_code_without_manifest_shows_against_the_source(
        self, damaged: Path, llava_folder: Path
    ) -> None:
        edit_manifest(damaged, "tensors", {})
        entry = Checkpoint.open(damaged).tensors[f"{UP}.codes"]
        data = bytearray(entry.file.read_bytes())
        for position in range(entry.offset, entry.offset + 32):
            data[position] ^= 0xFF
        entry.file.write_bytes(bytes(data))
        assert f"{UP}.codes" in failed_tensors(damaged, llava_folder)

    @pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
    def test_bad_scales_without_manifest(self, without_manifest: Path, scale: float) -> None:
        edit_tensor(without_manifest, f"{UP}.row_scale", lambda tensor: tensor.fill_(scale))
        problems = verify_checkpoint(without_manifest).problems
        assert len(problems) == 1
        assert "row_scale" in str(problems[0])
        assert UP in str(problems[0])

    def test_padding_bits_without_manifest(self, tmp_path: Path) -> None:
        from conftest import llama_model

        # 15 inputs of 3 bits each fill 45 bits: the row's last byte has three padding bits.
        llama_model(hidden_size=14, num_attention_heads=1, num_key_value_heads=1).save_pretrained(
            tmp_path / "source"
        )
        recipe = [{"match": ".", "bits": 1.5}]
        compress_checkpoint(tmp_path / "source", tmp_path / "out", recipe=recipe, progress=False)
        (tmp_path / "out" / "llava_fa_manifest.json").unlink()
        name = "model.layers.0.mlp.up_proj"

        def set_padding(codes: torch.Tensor) -> torch.Tensor:
            codes[-1, -1] |= 0x80
            return codes

        edit_tensor(tmp_path / "out", f"{name}.codes", set_padding)
        problems = verify_checkpoint(tmp_path / "out").problems
        assert [problem.tensor for problem in problems] == [name]
        assert "codes" in str(problems[0])

    def test_missing_tensor(self, damaged: Path) -> None:
        edit_tensor(damaged, f"{UP}.row_scale", lambda tensor: None)
        path = damaged / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        del index["weight_map"][f"{UP}.row_scale"]
        path.write_text(json.dumps(index))
        problems = verify_checkpoint(damaged).problems
        assert any(f"{UP}.row_scale is missing" in str(problem) for problem in problems)

    def test_added_and_lost_tensors(self, damaged: Path) -> None:
        file = next(file for file in damaged.glob("*.safetensors") if EMBEDDING in load_file(file))
        tensors = load_file(file)
        tensors["stranger"] = tensors.pop(EMBEDDING)
        save_file(tensors, file, {"format": "pt"})
        path = damaged / "model.safetensors.index.json"
        path.write_text(path.read_text().replace(f'"{EMBEDDING}"', '"stranger"'))
        assert {"stranger", EMBEDDING} <= failed_tensors(damaged)

    def test_header_against_configuration(self, damaged: Path) -> None:
        def other_seed(header: torch.Tensor) -> torch.Tensor:
            header[8] = 5
            return header

        edit_tensor(damaged, f"{UP}.header", other_seed)
        problems = [str(p) for p in verify_checkpoint(damaged).problems if UP in p.tensor]
        assert any("config.json says" in problem for problem in problems)

    @pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t.to(torch.int16)])
    def test_inconsistent_sizes_and_types(
        self, damaged: Path, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        edit_tensor(damaged, f"{UP}.codes", change)
        problems = [str(problem) for problem in verify_checkpoint(damaged).problems]
        assert any(f"{UP}.codes: expected U8" in problem for problem in problems)

    def test_another_source(self, packed_folder: Path, tmp_path: Path) -> None:
        llava_model(seed=9).save_pretrained(tmp_path)
        failed = failed_tensors(packed_folder, tmp_path)
        assert f"{UP}.codes" in failed
        assert EMBEDDING in failed

    def test_truncated_shard(self, damaged: Path) -> None:
        file = min(damaged.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(CheckpointError, match=rf"{file.name}.*truncated"):
            verify_checkpoint(damaged)

    def test_future_version(self, damaged: Path) -> None:
        path = damaged / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"]["format_version"] = 4
        path.write_text(json.dumps(config))
        with pytest.raises(FormatError, match="format version 4"):
            verify_checkpoint(damaged)


def edit_manifest(folder: Path, key: str, value: object) -> None:
    path = folder / "llava_fa_manifest.json"
    manifest = json.loads(path.read_text())
    manifest[key] = value
    path.write_text(json.dumps(manifest))

"""Bad weights, recipes and folders given to a compression: each is refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conftest import (
    UP,
    compress,
    edit_tensor,
    folder_bytes,
    llama_model,
    read_all,
)
from llava_fa import CompressionConfig
from llava_fa.decompress import decompress_checkpoint
from llava_fa.errors import (
    CheckpointError,
    LlavaFaError,
    MissingFileError,
    NonFiniteError,
    RecipeError,
)


class TestBadWeights:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_non_finite_names_tensor_and_file(self, llama: Path, output: Path, bad: float) -> None:
        file = edit_tensor(
            llama, f"{UP}.weight", lambda tensor: tensor.index_fill(0, torch.tensor([3]), bad)
        )
        with pytest.raises(NonFiniteError) as caught:
            compress(llama, output)
        assert f"{UP}.weight" in str(caught.value)
        assert file.name in str(caught.value)

    def test_non_finite_can_be_kept_dense(self, llama: Path, output: Path) -> None:
        edit_tensor(llama, f"{UP}.weight", lambda tensor: tensor.fill_(float("nan")))
        with pytest.warns(UserWarning, match=rf"{UP}\.weight.*kept dense"):
            report = compress(llama, output, on_nonfinite="skip")
        assert read_all(output)[f"{UP}.weight"].isnan().all()
        notes = {row.name: row.note for row in report.kept if row.note}
        assert notes == {f"{UP}.weight": "holds NaN or infinity"}

    def test_unknown_nonfinite_policy(self, llama: Path, output: Path) -> None:
        with pytest.raises(ValueError, match="on_nonfinite"):
            compress(llama, output, on_nonfinite="ignore")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
    def test_wrong_dtype_names_the_tensor(
        self, llama: Path, output: Path, dtype: torch.dtype
    ) -> None:
        edit_tensor(llama, f"{UP}.weight", lambda tensor: tensor.to(dtype))
        with pytest.raises(CheckpointError, match=rf"{UP}\.weight is stored as"):
            compress(llama, output)
        assert not output.exists()

    def test_zero_matrix(self, llama: Path, output: Path, tmp_path: Path) -> None:
        edit_tensor(llama, f"{UP}.weight", torch.zeros_like)
        report = compress(llama, output)
        errors = {row.name: row.relative_error for row in report.compressed}
        assert errors[UP] == 0
        decompress_checkpoint(output, tmp_path / "dense", progress=False)
        assert not read_all(tmp_path / "dense")[f"{UP}.weight"].any()

    @pytest.mark.parametrize("size", [1, 3])
    def test_one_row_and_one_column(self, output: Path, tmp_path: Path, size: int) -> None:
        llama_model(intermediate_size=size).save_pretrained(tmp_path / "source")
        report = compress(tmp_path / "source", output)
        shapes = {row.shape for row in report.compressed}
        assert {(size, 16), (16, size)} <= shapes
        errors = [row.relative_error for row in report.compressed]
        assert all(error is not None and error < 0.2 for error in errors)
        decompress_checkpoint(output, tmp_path / "dense", progress=False)

    def test_rank_above_the_possible(self, llama: Path, output: Path) -> None:
        with pytest.raises(ValueError, match=r"rank 10 is above 9.*q_proj|rank 10 is above 9"):
            compress(llama, output, CompressionConfig(rank=10))
        assert not output.exists()

    def test_unknown_codec(self) -> None:
        with pytest.raises(ValueError, match="nope"):
            CompressionConfig.from_dict({"codec": "nope"})


class TestBadPlaces:
    def test_missing_source(self, output: Path, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError):
            compress(tmp_path / "absent", output)

    def test_truncated_shard(self, llama: Path, output: Path) -> None:
        file = llama / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(CheckpointError, match="truncated"):
            compress(llama, output)

    def test_already_compressed(self, packed_folder: Path, output: Path) -> None:
        with pytest.raises(CheckpointError, match="already compressed"):
            compress(packed_folder, output)

    def test_quantized_by_something_else_in_a_sub_config(
        self, llava_folder: Path, tmp_path: Path
    ) -> None:
        source = Path(shutil.copytree(llava_folder, tmp_path / "source"))
        config = json.loads((source / "config.json").read_text())
        config["vision_config"]["quantization_config"] = {"quant_method": "gptq"}
        (source / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"'gptq' in vision_config\.quantization_config"):
            compress(source, tmp_path / "output")

    def test_output_not_empty(self, llama: Path, output: Path) -> None:
        output.mkdir()
        (output / "precious.txt").write_text("mine")
        with pytest.raises(CheckpointError, match=r"not empty \(precious\.txt\)"):
            compress(llama, output)
        assert [path.name for path in output.iterdir()] == ["precious.txt"]

    def test_output_is_a_file(self, llama: Path, output: Path) -> None:
        output.write_text("mine")
        with pytest.raises(CheckpointError, match="found a file"):
            compress(llama, output)

    def test_overwrite_replaces_the_checkpoint_and_nothing_else(
        self, llava_folder: Path, llama: Path, output: Path, tmp_path: Path
    ) -> None:
        compress(llava_folder, output, max_shard_size="20KB")
        (output / "precious.txt").write_text("mine")
        compress(llama, output, overwrite=True)
        compress(llama, tmp_path / "fresh")
        result = folder_bytes(output)
        assert result.pop("precious.txt") == b"mine"
        leftover = result.keys() - folder_bytes(tmp_path / "fresh").keys()
        assert leftover <= {"tokenizer_config.json"}  # not a file that this source has

    @pytest.mark.parametrize("place", [".", "inside", ".."])
    def test_output_and_source_must_be_apart(self, llama: Path, place: str) -> None:
        before = folder_bytes(llama)
        with pytest.raises(CheckpointError, match="must not be the source"):
            compress(llama, llama / place, overwrite=True)
        assert folder_bytes(llama) == before

    def test_recipe_that_matches_nothing(self, llama: Path, output: Path) -> None:
        with pytest.raises(RecipeError, match="matches none"):
            compress(llama, output, recipe=[{"match": "vision", "skip": True}])
        assert not output.exists()

    def test_recipe_that_skips_all(self, llama: Path, output: Path) -> None:
        with pytest.raises(CheckpointError, match="nothing to compress"):
            compress(llama, output, recipe=[{"match": ".", "skip": True}])

    @pytest.mark.parametrize("size", ["", "five", "5XB", 0, -1, "0"])
    def test_wrong_shard_size(self, llama: Path, output: Path, size: Any) -> None:
        with pytest.raises(ValueError, match="max_shard_size"):
            compress(llama, output, max_shard_size=size)


def test_index_of_a_shard_that_was_replaced(llava_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(llava_folder, tmp_path / "source"))
    first = min(source.glob("model-*.safetensors"))
    save_file({"unrelated": torch.ones(1)}, first)
    with pytest.raises(LlavaFaError, match=first.name):
        compress(source, tmp_path / "output")

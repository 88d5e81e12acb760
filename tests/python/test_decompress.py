"""Turning a compressed checkpoint back into a dense one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import (
    compress,
    llama_model,
    read_all,
)
from llava_fa.decompress import decompress_checkpoint
from llava_fa.errors import (
    CheckpointError,
)


class TestDecompress:
    def test_decoded_weights_and_types(self, output: Path, tmp_path: Path) -> None:
        llama_model().bfloat16().save_pretrained(tmp_path / "source")
        compress(tmp_path / "source", output)
        decompress_checkpoint(output, tmp_path / "dense", progress=False)
        source, dense = read_all(tmp_path / "source"), read_all(tmp_path / "dense")
        assert source.keys() == dense.keys()
        for name, tensor in dense.items():
            assert tensor.dtype == torch.bfloat16
            weight = source[name].double()
            error = (tensor.double() - weight).square().sum() / weight.square().sum()
            assert error < 0.05
        config = json.loads((tmp_path / "dense/config.json").read_text())
        assert "quantization_config" not in config

    def test_model_card_and_other_files(
        self, llava_folder: Path, packed_folder: Path, output: Path
    ) -> None:
        decompress_checkpoint(packed_folder, output, progress=False)
        assert (output / "README.md").read_text() == (llava_folder / "README.md").read_text()
        assert (output / "tokenizer_config.json").exists()
        assert not (output / "llava_fa_manifest.json").exists()

    def test_dtype_applies_to_all(self, llama: Path, output: Path, tmp_path: Path) -> None:
        compress(llama, output)
        decompress_checkpoint(output, tmp_path / "dense", dtype="float16", progress=False)
        dtypes = {tensor.dtype for tensor in read_all(tmp_path / "dense").values()}
        assert dtypes == {torch.float16}
        assert json.loads((tmp_path / "dense/config.json").read_text())["dtype"] == "float16"

    @pytest.mark.parametrize("dtype", ["int8", "nonsense", torch.int64, 3])
    def test_wrong_dtype(self, packed_folder: Path, output: Path, dtype: Any) -> None:
        with pytest.raises(ValueError, match="floating-point"):
            decompress_checkpoint(packed_folder, output, dtype=dtype, progress=False)

    def test_dense_source_is_refused(self, llama: Path, output: Path) -> None:
        with pytest.raises(CheckpointError, match="not a checkpoint that llava-fa compressed"):
            decompress_checkpoint(llama, output, progress=False)

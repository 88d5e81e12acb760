"""Reading safetensors checkpoints: what is read, and every way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_fa.errors import CheckpointError, MissingFileError
from llava_fa.shards import Checkpoint, read_header


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    """Write a safetensors file with any header, right or wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with an index."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(4)}, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


class TestReading:
    def test_all_dtypes_come_back_equal(self, tmp_path: Path) -> None:
        tensors = {
            "f64": torch.randn(2, 3, dtype=torch.float64),
            "f32": torch.randn(3, 5),
            "f16": torch.randn(7).half(),
            "bf16": torch.randn(4, 1).bfloat16(),
            "i64": torch.tensor([-1, 2**40]),
            "u8": torch.arange(9, dtype=torch.uint8),
            "bool": torch.tensor([True, False, True]),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 4),
        }
        (tmp_path / "config.json").write_text("{}")
        save_file(tensors, tmp_path / "model.safetensors")
        checkpoint = Checkpoint.open(tmp_path)
        assert set(checkpoint.tensors) == set(tensors)
        for name, tensor in tensors.items():
            read = checkpoint.tensors[name].read()
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor)

    def test_chunks_are_the_stored_bytes(self, folder: Path) -> None:
        found = Checkpoint.open(folder).tensors["a"]
        joined = b"".join(found.chunks(chunk_bytes=5))
        assert joined == torch.arange(6.0).numpy().tobytes()

    def test_tensors_are_in_the_order_of_files_and_offsets(self, tmp_path: Path) -> None:
        header = {"late": entry(offsets=(8, 16)), "early": entry(offsets=(0, 8))}
        file = write_raw(tmp_path / "model.safetensors", header, bytes(16))
        assert list(read_header(file)) == ["early", "late"]

    def test_several_shards(self, folder: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        assert list(checkpoint.tensors) == ["a", "b"]
        assert checkpoint.nbytes == 24 + 16


class TestFolders:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError, match="no such folder"):
            Checkpoint.open(tmp_path / "absent")

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        with pytest.raises(MissingFileError, match=r"config\.json"):
            Checkpoint.open(folder)

    def test_damaged_config(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
            Checkpoint.open(folder)

    def test_missing_shard_is_named(self, folder: Path) -> None:
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(MissingFileError, match="model-00002-of-00002"):
            Checkpoint.open(folder)

    def test_index_naming_a_missing_tensor(self, folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
        path.write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="ghost"):
            Checkpoint.open(folder)

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3, "model.bin"])
    def test_index_naming_a_file_elsewhere(self, folder: Path, name: object) -> None:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="expected"):
            Checkpoint.open(folder)

    def test_tensor_in_two_shards(self, folder: Path) -> None:
        second = folder / "model-00002-of-00002.safetensors"
        save_file({"a": torch.ones(1), "b": torch.ones(4)}, second)
        with pytest.raises(CheckpointError, match="tensor a is in"):
            Checkpoint.open(folder)

    def test_pickle_is_refused_with_the_remedy(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="pickle") as caught:
            Checkpoint.open(tmp_path)
        assert "pytorch_model.bin" in str(caught.value)
        assert "save_pretrained" in str(caught.value)

    def test_shards_without_index(self, folder: Path) -> None:
        (folder / "model.safetensors.index.json").unlink()
        with pytest.raises(MissingFileError, match=r"no model\.safetensors\.index\.json"):
            Checkpoint.open(folder)

    def test_no_weights_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(MissingFileError, match="found neither"):
            Checkpoint.open(tmp_path)

    def test_single_file_beside_an_index(self, folder: Path) -> None:
        """As transformers decides it, so that both read the same weights."""
        save_file({"single": torch.ones(1)}, folder / "model.safetensors")
        assert list(Checkpoint.open(folder).tensors) == ["single"]


class TestHeaders:
    def test_truncated_data(self, folder: Path) -> None:
        file = folder / "model-00001-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="truncated"):
            Checkpoint.open(folder)

    @pytest.mark.parametrize("size", [0, 7, 8, 20])
    def test_truncated_header(self, folder: Path, size: int) -> None:
        file = folder / "model-00001-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(CheckpointError, match="does not fit"):
            read_header(file)

    def test_header_length_bomb(self, tmp_path: Path) -> None:
        file = tmp_path / "x.safetensors"
        file.write_bytes((2**63).to_bytes(8, "little") + b"{}")
        with pytest.raises(CheckpointError, match="does not fit"):
            read_header(file)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (b"{not json", "not valid JSON"),
            (b"[]", "not a JSON object"),
            (b'{"a": 1, "a": 2}', "not valid JSON"),
            ({"a": 5}, "not an object"),
            ({"a": entry(dtype="F7")}, "unknown dtype 'F7'"),
            ({"a": entry(dtype=["F32"])}, "unknown dtype"),
            ({"a": entry(shape=(-2,))}, "not a list of sizes"),
            ({"a": entry(shape=(2.0,))}, "not a list of sizes"),
            ({"a": entry(shape=(True,))}, "not a list of sizes"),
            ({"a": entry(offsets=(0,))}, "not a pair"),
            ({"a": entry(offsets=(-8, 0))}, "not a pair"),
            ({"a": entry(offsets=(0, 4))}, "takes 8 bytes"),
            ({"a": entry(shape=(2**40, 2**40))}, "takes"),
            ({"a": entry(offsets=(8, 16))}, "follows a hole"),
            ({"a": entry(), "b": entry(offsets=(4, 12))}, "overlaps"),
            ({"a": entry()}, "too long"),
            ({"a": entry(shape=(8,), offsets=(0, 32))}, "truncated"),
        ],
    )
    def test_wrong_headers(self, tmp_path: Path, header: Any, message: str) -> None:
        file = write_raw(tmp_path / "x.safetensors", header, bytes(16))
        with pytest.raises(CheckpointError, match=message) as caught:
            read_header(file)
        assert "x.safetensors" in str(caught.value)

    def test_file_that_shrinks_while_it_is_read(self, folder: Path) -> None:
        found = Checkpoint.open(folder).tensors["a"]
        found.file.write_bytes(found.file.read_bytes()[:-4])
        with pytest.raises(CheckpointError, match="ended while reading"):
            found.read()
        with pytest.raises(CheckpointError, match="ended while reading"):
            list(found.chunks())

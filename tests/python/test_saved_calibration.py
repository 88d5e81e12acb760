"""The file of second moments: what another run takes from it, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import DATA, DOWN, K, Q, compress, llama_model, read_all
from llava_fa import CompressionConfig, calibration_run
from llava_fa.errors import CheckpointError, NonFiniteError

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer rows")


@pytest.fixture
def saved(source: Path, tmp_path: Path) -> Path:
    """Second moments of ``source``."""
    path = tmp_path / "moments.safetensors"
    compress(source, tmp_path / "first", calibration_data=DATA, save_calibration=path)
    return path


def rewrite(path: Path, change: Any) -> None:
    """Change a saved calibration: ``change(tensors, metadata)``."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


class TestSaving:
    def test_saved_moments_give_the_same_matrices(
        self, source: Path, saved: Path, output: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(calibration_run, "load_dense_model", None)  # it needs no model
        report = compress(source, output, load_calibration=saved)
        first, second = read_all(tmp_path / "first"), read_all(output)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name])
        assert {row.calibration_rows for row in report.compressed} == {120}

    def test_the_file_does_not_depend_on_the_memory(
        self, source: Path, saved: Path, tmp_path: Path
    ) -> None:
        options = {"calibration_memory": 1, "save_calibration": tmp_path / "again"}
        compress(source, tmp_path / "second", calibration_data=DATA, **options)
        assert (tmp_path / "again").read_bytes() == saved.read_bytes()

    def test_one_tensor_for_layers_that_share_an_input(self, saved: Path) -> None:
        tensors = load_file(saved)
        assert Q in tensors
        assert K not in tensors
        assert len(tensors) == 8

    def test_full_moments_serve_diagonal_settings(
        self, source: Path, saved: Path, output: Path
    ) -> None:
        config = CompressionConfig(calibration="diagonal", bits=2)
        report = compress(source, output, config, load_calibration=saved)
        assert {row.second_moment for row in report.compressed} == {"diagonal"}

    def test_layers_that_the_file_lacks_are_named(
        self, source: Path, output: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "moments"
        recipe = [{"match": "down_proj", "skip": True}]
        options = {"calibration_data": DATA, "save_calibration": path}
        compress(source, tmp_path / "first", recipe=recipe, **options)
        with pytest.warns(UserWarning, match=rf"nothing for 2 layer\(s\).*{DOWN}"):
            compress(source, output, load_calibration=path)

    def test_a_finished_run_that_saved_is_recognized(
        self, source: Path, saved: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(calibration_run, "load_dense_model", None)
        compress(source, tmp_path / "first", calibration_data=DATA, save_calibration=saved)


class TestRefusedFiles:
    def refuse(self, source: Path, saved: Path, output: Path, message: str) -> None:
        with pytest.raises((CheckpointError, NonFiniteError), match=message) as caught:
            compress(source, output, load_calibration=saved)
        assert saved.name in str(caught.value)

    def test_of_another_model(self, saved: Path, output: Path, tmp_path: Path) -> None:
        llama_model(seed=5, num_hidden_layers=2).save_pretrained(tmp_path / "other")
        self.refuse(tmp_path / "other", saved, output, "from another model")
        assert not output.exists()

    def test_missing(self, source: Path, output: Path, tmp_path: Path) -> None:
        self.refuse(source, tmp_path / "absent", output, "no such calibration file")

    def test_not_a_calibration(self, source: Path, output: Path) -> None:
        self.refuse(source, source / "model.safetensors", output, "not a calibration")

    @pytest.mark.parametrize("size", [0, 5, 100, -1])
    def test_truncated(self, source: Path, saved: Path, output: Path, size: int) -> None:
        saved.write_bytes(saved.read_bytes()[:size])
        self.refuse(source, saved, output, "header|describes")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("version", "2", "version '2'"),
            ("order", "sequential", "'sequential' order"),
            ("rows", "[]", "metadata 'rows' are damaged"),
            ("rows", "{", "metadata 'rows' are damaged"),
            ("rows", json.dumps({Q: "many"}), "metadata 'rows' are damaged"),
            ("rows", json.dumps({Q: 1}), "contradict its tensors"),
            ("layers", json.dumps({Q: "elsewhere"}), "contradict its tensors"),
            ("layers", json.dumps({Q: 3}), "metadata 'layers' are damaged"),
            ("layers", json.dumps({DOWN: Q}), r"down_proj has 24 inputs"),
        ],
    )
    def test_wrong_metadata(
        self, source: Path, saved: Path, output: Path, key: str, value: str, message: str
    ) -> None:
        rewrite(saved, lambda tensors, metadata: metadata.update({key: value}))
        self.refuse(source, saved, output, message)

    @pytest.mark.parametrize(
        ("moment", "message"),
        [
            (torch.ones(16, 17), r"F32 \[16, 17\]"),
            (torch.ones(16, 16).half(), r"F16 \[16, 16\]"),
            (torch.ones(16, 16).fill_(float("nan")), "holds NaN or infinity"),
        ],
    )
    def test_wrong_tensors(
        self, source: Path, saved: Path, output: Path, moment: torch.Tensor, message: str
    ) -> None:
        rewrite(saved, lambda tensors, metadata: tensors.update({Q: moment}))
        self.refuse(source, saved, output, message)

    def test_mean_squares_are_not_enough_for_feedback(
        self, source: Path, output: Path, tmp_path: Path
    ) -> None:
        path, config = tmp_path / "moments", CompressionConfig(calibration="diagonal")
        options = {"calibration_data": DATA, "save_calibration": path}
        compress(source, tmp_path / "first", config, **options)
        self.refuse(source, path, output, "only mean squares for .*--calibration")

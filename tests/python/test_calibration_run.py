"""Calibration of a whole checkpoint: order, memory, refused options, resuming, reporting."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import (
    DATA,
    DOWN,
    K,
    Q,
    compress,
    folder_bytes,
    llama_model,
    llava_inputs,
    llava_model,
)
from llava_fa import CompressionConfig, writer
from llava_fa import compress as compress_module
from llava_fa.errors import CheckpointError, ResumeError
from llava_fa.partial import PARTIAL_NAME

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer rows")


class Seen:
    """Records the second moment that every matrix is compressed with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moments: list[torch.Tensor | None] = []
        original = compress_module.compress_matrix

        def recorded(*args: Any, input_second_moment: Any) -> Any:
            self.moments.append(input_second_moment)
            return original(*args, input_second_moment=input_second_moment)

        monkeypatch.setattr(compress_module, "compress_matrix", recorded)


class TestWhatMatricesGet:
    def test_full_second_moments(self, source: Path, output: Path, monkeypatch: Any) -> None:
        seen = Seen(monkeypatch)
        compress(source, output, calibration_data=DATA)
        assert len(seen.moments) == 14
        for moment in seen.moments:
            assert moment is not None
            assert moment.dtype == torch.float32
            assert moment.shape in ((16, 16), (24, 24))

    def test_diagonal(self, source: Path, output: Path, monkeypatch: Any) -> None:
        seen = Seen(monkeypatch)
        config = CompressionConfig(calibration="diagonal")
        report = compress(source, output, config, calibration_data=DATA)
        assert [m.ndim for m in seen.moments if m is not None] == [1] * 14
        assert {row.second_moment for row in report.compressed} == {"diagonal"}

    def test_a_recipe_decides_by_layer(self, source: Path, output: Path) -> None:
        recipe = [{"match": "mlp", "calibration": "diagonal"}]
        report = compress(source, output, recipe=recipe, calibration_data=DATA)
        kinds = {row.name: row.second_moment for row in report.compressed}
        assert kinds[Q] == "full"
        assert kinds[DOWN] == "diagonal"

    def test_layers_that_share_an_input_may_want_different_things(
        self, source: Path, output: Path
    ) -> None:
        recipe = [{"match": "q_proj", "calibration": "diagonal"}]
        report = compress(source, output, recipe=recipe, calibration_data=DATA)
        kinds = {row.name: row.second_moment for row in report.compressed}
        assert (kinds[Q], kinds[K]) == ("diagonal", "full")

    def test_the_papers_weights_need_the_full_matrix(self, source: Path, output: Path) -> None:
        config = CompressionConfig(calibration="diagonal", odc="spectral", rank=1)
        report = compress(source, output, config, calibration_data=DATA)
        assert {row.second_moment for row in report.compressed} == {"full"}

    def test_sequential_order_shows_the_errors_of_layers_before(
        self, source: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        inputs = []
        for order in ("one-pass", "sequential"):
            seen = Seen(monkeypatch)
            config = CompressionConfig(bits=1)
            options = {"calibration_data": DATA, "calibration_order": order}
            compress(source, tmp_path / order, config, **options)
            inputs.append([moment for moment in seen.moments if moment is not None])
        dense, sequential = inputs
        assert torch.equal(dense[0], sequential[0])  # nothing comes before the first layer
        changes = [float((a - b).norm() / a.norm()) for a, b in zip(dense, sequential, strict=True)]
        assert all(change > 0.01 for change in changes[3:])  # after q, k and v

    @pytest.mark.parametrize("order", ["one-pass", "sequential"])
    def test_bytes_do_not_depend_on_the_memory(
        self, source: Path, tmp_path: Path, order: str
    ) -> None:
        for memory in ("4GB", 100_000, 1):
            options = {"calibration_order": order, "calibration_memory": memory}
            compress(source, tmp_path / str(memory), calibration_data=DATA, **options)
        assert folder_bytes(tmp_path / "4GB") == folder_bytes(tmp_path / "100000")
        assert folder_bytes(tmp_path / "4GB") == folder_bytes(tmp_path / "1")

    def test_one_sample(self, source: Path, output: Path) -> None:
        with pytest.warns(UserWarning, match="fewer rows than they have channels"):
            report = compress(
                source, output, calibration_data=[{"input_ids": DATA[0]["input_ids"][:, :1]}]
            )
        assert {row.calibration_rows for row in report.compressed} == {1}

    def test_channels_that_are_never_active(self, tmp_path: Path, output: Path) -> None:
        model = llama_model()
        with torch.no_grad():
            model.model.layers[0].input_layernorm.weight[3] = 0
        model.save_pretrained(tmp_path / "source")
        report = compress(tmp_path / "source", output, calibration_data=DATA)
        errors = {row.name: row.relative_error for row in report.compressed}
        assert errors[Q] is not None
        assert errors[Q] < 0.05

    def test_a_weight_kept_dense_does_not_disturb_the_others(
        self, tmp_path: Path, output: Path
    ) -> None:
        model = llama_model()
        with torch.no_grad():
            model.lm_head.weight[0, 0] = float("nan")
        model.save_pretrained(tmp_path / "source")
        with pytest.warns(UserWarning, match="kept dense") as caught:
            report = compress(
                tmp_path / "source",
                output,
                recipe=[{"match": "^lm_head$", "compress": True}],
                calibration_data=DATA,
                on_nonfinite="skip",
            )
        assert sum("kept dense" in str(warning.message) for warning in caught) == 1
        assert len(report.compressed) == 7


class TestReport:
    def test_rows_and_kinds(self, source: Path, output: Path) -> None:
        report = compress(source, output, calibration_data=DATA)
        text = "14 matrices with full second moments; 120 inputs each"
        assert report.calibration_text() == text
        assert f"calibration: {text}" in report.summary_table()
        assert f"| calibration | {text} |" in (output / "README.md").read_text()
        assert {row["calibration_rows"] for row in report.to_dict()["tensors"]} == {0, 120}

    def test_mixed(self, tmp_path: Path, output: Path) -> None:
        llava_model().save_pretrained(tmp_path / "source")
        config = CompressionConfig(calibration="diagonal")
        text = [{"input_ids": torch.tensor([[3, 4, 5]])}]
        with pytest.warns(UserWarning, match="saw no calibration data"):
            report = compress(tmp_path / "source", output, config, calibration_data=text)
        expected = "7 matrices with mean squares, 14 without data; 3 inputs each"
        assert report.calibration_text() == expected

    def test_without_data(self, packed_folder: Path) -> None:
        assert "| calibration | none |" in (packed_folder / "README.md").read_text()


class TestRefusedOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"calibration_order": "twice"}, "calibration_order is 'twice'"),
            ({"calibration_memory": "much"}, "calibration_memory must be bytes or like"),
            ({"calibration_memory": 0}, "calibration_memory must be bytes or like"),
            ({"save_calibration": "x"}, "needs calibration_data"),
            ({"load_calibration": "x", "calibration_data": DATA}, "give one or the other"),
            ({"load_calibration": "x", "calibration_order": "sequential"}, "one-pass"),
            (
                {
                    "save_calibration": "x",
                    "calibration_data": DATA,
                    "calibration_order": "sequential",
                },
                "one-pass",
            ),
        ],
    )
    def test_contradictions(
        self, source: Path, output: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            compress(source, output, **options)
        assert not output.exists()

    @pytest.mark.parametrize("folder", ["source", "output"])
    def test_moments_inside_of_a_checkpoint(self, source: Path, output: Path, folder: str) -> None:
        path = source.parent / folder / "moments.safetensors"
        with pytest.raises(ValueError, match="inside of the checkpoint"):
            compress(source, output, calibration_data=DATA, save_calibration=path)

    def test_other_files_are_not_replaced(self, source: Path, output: Path, tmp_path: Path) -> None:
        path = tmp_path / "precious"
        path.write_text("mine")
        options = {"calibration_data": DATA, "save_calibration": path}
        with pytest.raises(CheckpointError, match="precious: exists"):
            compress(source, output, **options)
        assert path.read_text() == "mine"
        compress(source, output, **options, overwrite=True)
        assert Q in load_file(path)

    def test_a_folder_that_is_not_there(self, source: Path, output: Path, tmp_path: Path) -> None:
        path = tmp_path / "absent" / "moments"
        with pytest.raises(CheckpointError, match="no such folder"):
            compress(source, output, calibration_data=DATA, save_calibration=path)


class TestResume:
    def interrupt(self, source: Path, output: Path, changes: int, **options: Any) -> None:
        original, left = writer._replace, [changes]

        def stop(*args: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            original(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "_replace", stop)
            with pytest.raises(KeyboardInterrupt):
                compress(source, output, **options)

    def moments(self, output: Path) -> list[str]:
        return sorted(path.name for path in (output / PARTIAL_NAME).glob("moment-*.safetensors"))

    def test_only_unfinished_moments_are_kept(self, source: Path, output: Path) -> None:
        # manifest, structure, first input's moment, q's part and its record, k's part
        options = {"calibration_data": DATA, "calibration_memory": 1}
        self.interrupt(source, output, 6, **options)
        assert self.moments(output) == ["moment-00000.safetensors"]
        shutil.rmtree(output)
        # the rest of q, k, v; then the next input's moment
        self.interrupt(source, output, 10, **options)
        assert self.moments(output) == ["moment-00001.safetensors"]

    @pytest.mark.parametrize("order", ["one-pass", "sequential"])
    def test_a_damaged_shard_is_made_again(
        self, source: Path, output: Path, tmp_path: Path, order: str
    ) -> None:
        options = {
            "calibration_data": DATA,
            "calibration_order": order,
            "calibration_memory": 1,
            "max_shard_size": "3KB",
        }
        compress(source, tmp_path / "whole", **options)
        changes = 2 + 8 + 2 * 14 + 4  # all parts and two shards
        self.interrupt(source, output, changes, **options)
        shard = output / PARTIAL_NAME / "shard-00002.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
        compress(source, output, **options)
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")

    def test_another_order_is_refused(self, source: Path, output: Path) -> None:
        self.interrupt(source, output, 6, calibration_data=DATA)
        with pytest.raises(ResumeError, match=r"calibration\.order: 'one-pass' then, 'sequential'"):
            compress(source, output, calibration_data=DATA, calibration_order="sequential")

    def test_another_memory_is_not(self, source: Path, output: Path, tmp_path: Path) -> None:
        compress(source, tmp_path / "whole", calibration_data=DATA)
        self.interrupt(source, output, 6, calibration_data=DATA, calibration_memory=1)
        compress(source, output, calibration_data=DATA, calibration_memory=100_000)
        assert folder_bytes(output) == folder_bytes(tmp_path / "whole")


def test_both_towers_of_a_llava(llava_folder: Path, output: Path) -> None:
    data = [llava_inputs(seed) for seed in range(8)]
    report = compress(llava_folder, output, calibration_data=data, calibration_memory=100_000)
    assert {row.second_moment for row in report.compressed} == {"full"}

"""What compressing a checkpoint writes, with and without calibration data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import (
    UP,
    compress,
    folder_bytes,
    llava_inputs,
    llava_model,
    read_all,
    uneven_inputs,
)
from llava_fa import CompressedMatrix, CompressionConfig, MatrixSpec
from llava_fa.compress import compress_checkpoint
from llava_fa.loading import load_model
from llava_fa.partial import PARTIAL_NAME


class TestResult:
    def test_every_linear_layer_but_the_head_is_compressed(
        self, llava_folder: Path, packed_folder: Path
    ) -> None:
        model = llava_model()
        linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        config = json.loads((packed_folder / "config.json").read_text())
        assert set(config["quantization_config"]["modules"]) == linear - {"lm_head"}

    def test_matrices_decode_to_the_reported_error(self, llava_folder: Path, output: Path) -> None:
        report = compress(llava_folder, output)
        stored, model = read_all(output), llava_model()
        assert len(report.compressed) == 21
        for row in report.compressed:
            assert row.spec is not None
            state = {s: stored[f"{row.name}.{s}"] for s in row.spec.tensors()}
            matrix = CompressedMatrix.from_state_dict(state)
            weight = model.get_submodule(row.name).weight.detach()
            error = (matrix.dense() - weight).square().sum() / weight.square().sum()
            assert row.relative_error == pytest.approx(float(error), rel=1e-3)
            assert 0 < row.relative_error < 0.05

    def test_everything_else_is_stored_as_it_was(
        self, llava_folder: Path, packed_folder: Path
    ) -> None:
        source, stored = read_all(llava_folder), read_all(packed_folder)
        kept = source.keys() & stored.keys()
        assert len(kept) == len(source) - 21
        for name in kept:
            assert source[name].dtype == stored[name].dtype
            assert torch.equal(source[name], stored[name])

    def test_output_is_a_complete_folder(self, llava_folder: Path, packed_folder: Path) -> None:
        names = {path.name for path in packed_folder.iterdir()}
        assert {"config.json", "tokenizer_config.json", "llava_fa_manifest.json"} <= names
        assert PARTIAL_NAME not in names
        index = json.loads((packed_folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(read_all(packed_folder))
        for name, file in index["weight_map"].items():
            assert name in load_file(packed_folder / file)
        quantization = json.loads((packed_folder / "config.json").read_text())[
            "quantization_config"
        ]
        assert quantization["quant_method"] == "llava_fa"
        assert quantization["format_version"] == 3
        assert CompressionConfig.from_dict(quantization["config"]) == CompressionConfig()
        for values in quantization["modules"].values():
            assert MatrixSpec.from_dict(values).to_dict() == values

    def test_what_is_copied(self, llama: Path, output: Path) -> None:
        (llama / ".hidden").write_text("no")
        (llama / "optimizer.pt").write_text("no")
        (llama / "additional_chat_templates").mkdir()
        (llama / "additional_chat_templates/tool.jinja").write_text("yes")
        (llama / "checkpoint-500").mkdir()
        (llama / "checkpoint-500/trainer_state.json").write_text("no")
        compress(llama, output)
        files = set(folder_bytes(output)) - {"config.json", "README.md", "model.safetensors"}
        assert files == {
            "additional_chat_templates/tool.jinja",
            "generation_config.json",
            "llava_fa_manifest.json",
        }

    def test_one_shard_has_no_index(self, llama: Path, output: Path) -> None:
        compress(llama, output)
        names = {path.name for path in output.iterdir()}
        assert "model.safetensors" in names
        assert "model.safetensors.index.json" not in names

    def test_shards_keep_to_their_size(self, llava_folder: Path, output: Path) -> None:
        compress(llava_folder, output, max_shard_size="20KB")
        sizes = [p.stat().st_size for p in output.glob("*.safetensors")]
        assert len(sizes) > 2
        assert max(sizes) < 20_000 + 8_000  # the header comes on top

    def test_model_card_keeps_the_sources_and_has_the_figures(
        self, llava_folder: Path, packed_folder: Path
    ) -> None:
        card = (packed_folder / "README.md").read_text()
        assert card.startswith((llava_folder / "README.md").read_text().rstrip())
        assert "import llava_fa" in card
        assert "stored bits per weight" in card

    def test_totals_are_those_of_the_files(self, llava_folder: Path, output: Path) -> None:
        report = compress(llava_folder, output)
        total = sum(t.numel() * t.element_size() for t in read_all(output).values())
        assert report.nbytes_after == total
        before = sum(t.numel() * t.element_size() for t in read_all(llava_folder).values())
        assert report.nbytes_before == before
        assert report.ratio == pytest.approx(before / total)

    def test_old_hub_layout_gives_the_same_matrices(
        self, llava_folder: Path, old_hub_folder: Path, tmp_path: Path
    ) -> None:
        compress(llava_folder, tmp_path / "new")
        compress(old_hub_folder, tmp_path / "old")
        new, old = read_all(tmp_path / "new"), read_all(tmp_path / "old")
        packed = [name for name in new if name.rsplit(".", 1)[1] in ("codes", "row_scale")]
        assert len(packed) == 42
        for name in packed:
            assert torch.equal(new[name], old[name])

    def test_tied_embeddings_stay_tied(self, output: Path, tmp_path: Path) -> None:
        llava_model(tied=True).save_pretrained(tmp_path / "tied")
        report = compress(tmp_path / "tied", output)
        assert "lm_head" not in {row.name for row in report.compressed}
        names = set(read_all(output))
        assert not any("lm_head" in name for name in names)
        assert any(name.endswith("embed_tokens.weight") for name in names)

    def test_recipe(self, llama: Path, output: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("- match: down_proj\n  skip: true\n- match: mlp\n  bits: 2\n")
        report = compress(llama, output, recipe=recipe)
        bits = {row.name: row.spec.code_bits for row in report.compressed if row.spec}
        assert bits[UP] == 4
        assert bits["model.layers.0.self_attn.q_proj"] == 8
        assert "model.layers.0.mlp.down_proj" not in bits

    def test_recipe_can_include_the_head(self, llama: Path, output: Path) -> None:
        report = compress(llama, output, recipe=[{"match": "^lm_head$", "compress": True}])
        assert "lm_head" in {row.name for row in report.compressed}

    def test_summary_table_and_json(self, llama: Path, output: Path) -> None:
        report = compress(llama, output)
        table = report.summary_table()
        assert "model.layers.*.mlp.up_proj" in table
        assert "24x16" in table
        values = json.loads(report.to_json())
        assert len(values["tensors"]) == len(report.rows)
        assert values["bits_per_weight"] == report.bits_per_weight


@pytest.mark.parametrize("visible", [True, False])
def test_progress(
    llama: Path, output: Path, capfd: pytest.CaptureFixture[str], visible: bool
) -> None:
    compress_checkpoint(llama, output, progress=visible)
    shown = capfd.readouterr()
    assert shown.out == ""
    for stage in ("hashing the source: 100%", "compressing: 100%"):
        # A bar redraws its line; it may not begin a second one.
        assert [stage in line for line in shown.err.split("\n")].count(True) == visible


class TestCalibration:
    """Scales are stored only where they pay, so the layers' inputs must differ in size."""

    UP = "model.language_model.layers.0.mlp.up_proj"
    VISION = "model.vision_tower.encoder.layers.0.self_attn.q_proj"

    @pytest.fixture
    def uneven(self, tmp_path: Path) -> Path:
        model = uneven_inputs(llava_model())
        model.save_pretrained(tmp_path / "uneven")
        return tmp_path / "uneven"

    def test_data_reach_both_towers(self, uneven: Path, output: Path) -> None:
        config = CompressionConfig(calibration="diagonal")
        data = [llava_inputs(seed) for seed in range(2)]
        compress(uneven, output, config, calibration_data=data)
        stored = read_all(output)
        assert {f"{self.UP}.channel_scale_in", f"{self.VISION}.channel_scale_in"} <= set(stored)

    def test_scales_lower_the_error_of_the_outputs(self, uneven: Path, tmp_path: Path) -> None:
        inputs, model = llava_inputs(), uneven_inputs(llava_model())
        with torch.inference_mode():
            wanted = model(**inputs).logits
        errors = []
        for name, data in (("without", None), ("with", [inputs])):
            config = CompressionConfig(bits=2)
            compress(uneven, tmp_path / name, config, calibration_data=data)
            with torch.inference_mode():
                found = load_model(tmp_path / name)(**inputs).logits
            errors.append(float((found - wanted).square().mean()))
        assert errors[1] < errors[0]

    def test_layers_without_data_are_compressed_without(self, uneven: Path, output: Path) -> None:
        text = [{"input_ids": torch.tensor([[3, 4, 5]])}]
        config = CompressionConfig(calibration="diagonal")
        with pytest.warns(UserWarning, match="saw no calibration data"):
            report = compress(uneven, output, config, calibration_data=text)
        by_name = {row.name: row.spec for row in report.compressed if row.spec}
        assert not by_name[self.VISION].channel_scale_in
        assert by_name[self.UP].channel_scale_in


def test_two_runs_are_equal_byte_for_byte(llava_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        compress(llava_folder, tmp_path / name, CompressionConfig(bits=2.5, rank=2))
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")

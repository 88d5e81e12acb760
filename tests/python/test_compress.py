"""Compressing and decompressing a checkpoint: results, bad input, interruption and resumption."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import edit_tensor, folder_bytes, llama_model, llava_inputs, llava_model, read_all
from llava_fa import CompressedMatrix, CompressionConfig, MatrixSpec, writer
from llava_fa.compress import compress_checkpoint
from llava_fa.decompress import decompress_checkpoint
from llava_fa.errors import (
    CheckpointError,
    LlavaFaError,
    MissingFileError,
    NonFiniteError,
    RecipeError,
    ResumeError,
)
from llava_fa.loading import load_model
from llava_fa.partial import PARTIAL_NAME
from llava_fa.report import CompressionReport

UP = "model.layers.0.mlp.up_proj"


def compress(source: Path, output: Path, *args: Any, **options: Any) -> CompressionReport:
    return compress_checkpoint(source, output, *args, progress=False, **options)


@pytest.fixture
def llama(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "source"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


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
        assert quantization["format_version"] == 1
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
        compress(uneven, output, calibration_data=[llava_inputs(seed) for seed in range(2)])
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
        with pytest.warns(UserWarning, match="saw no calibration data"):
            report = compress(uneven, output, calibration_data=text)
        by_name = {row.name: row.spec for row in report.compressed if row.spec}
        assert not by_name[self.VISION].channel_scale_in
        assert by_name[self.UP].channel_scale_in


def uneven_inputs(model: Any) -> Any:
    """Make normalization layers give channels of very different sizes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.logspace(-1.5, 1, parameter.numel()))
    return model


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
        assert all(row.relative_error < 0.2 for row in report.compressed)  # type: ignore[operator]
        decompress_checkpoint(output, tmp_path / "dense", progress=False)

    def test_rank_above_the_possible(self, llama: Path, output: Path) -> None:
        with pytest.raises(ValueError, match=r"rank 10 is above 9.*q_proj|rank 10 is above 9"):
            compress(llama, output, CompressionConfig(rank=10))
        assert not output.exists()

    def test_unknown_codec(self) -> None:
        with pytest.raises(ValueError, match="nope"):
            CompressionConfig(codec="nope")  # type: ignore[arg-type]


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


def test_two_runs_are_equal_byte_for_byte(llava_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        compress(llava_folder, tmp_path / name, CompressionConfig(bits=2.5, rank=2))
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_index_of_a_shard_that_was_replaced(llava_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(llava_folder, tmp_path / "source"))
    first = min(source.glob("model-*.safetensors"))
    save_file({"unrelated": torch.ones(1)}, first)
    with pytest.raises(LlavaFaError, match=first.name):
        compress(source, tmp_path / "output")

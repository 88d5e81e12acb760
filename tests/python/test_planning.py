"""Size targets on checkpoints: the written folder against the target, recipes, resuming."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import UP, compress, edit_tensor, folder_bytes, plan
from llava_fa import BitPlan, BudgetError, CompressionConfig, NonFiniteError
from llava_fa.partial import PARTIAL_NAME, PartialRun


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


class TestTargetBits:
    @pytest.mark.parametrize("bits", [2.5, 3, 3.75])
    def test_average_is_kept_and_used(self, llava_folder: Path, output: Path, bits: float) -> None:
        report = compress(llava_folder, output, target_bits=bits)
        assert bits - 0.05 < report.bits_per_weight <= bits

    def test_the_card_states_the_range(self, llava_folder: Path, output: Path) -> None:
        compress(llava_folder, output, target_bits=3)
        assert re.search(r"\bbits=[\d.]+ to [\d.]+,", (output / "README.md").read_text())

    def test_report_agrees_with_the_plan(self, llava_folder: Path, output: Path) -> None:
        made = plan(llava_folder, target_bits=3)
        report = compress(llava_folder, output, target_bits=3)
        assert {row.name: row.spec for row in report.compressed} == {
            matrix.name: matrix.spec for matrix in made.matrices
        }
        assert made.bits_per_weight == pytest.approx(report.bits_per_weight)
        assert made.file_nbytes >= weight_bytes(output)

    def test_below_the_minimum(self, llava_folder: Path) -> None:
        with pytest.raises(BudgetError, match="smallest possible average") as caught:
            plan(llava_folder, target_bits=0.3)
        made = plan(llava_folder, target_bits=caught.value.minimum)
        assert {matrix.config.bits for matrix in made.matrices} == {1.0}
        with pytest.raises(BudgetError):
            plan(llava_folder, target_bits=caught.value.minimum - 0.002)

    def test_above_the_maximum(self, llava_folder: Path) -> None:
        made = plan(llava_folder, target_bits=16)
        assert {matrix.config.bits for matrix in made.matrices} == {5.0}
        assert "exceeds" in made.notes[0]

    def test_ranks_may_be_chosen(self, llava_folder: Path, output: Path) -> None:
        made = plan(llava_folder, target_bits=8, ranks=(0, 2, 4))
        assert {matrix.config.rank for matrix in made.matrices} <= {0, 2, 4}
        assert any(matrix.config.rank for matrix in made.matrices)
        report = compress(llava_folder, output, plan=made)
        assert report.bits_per_weight <= 8

    def test_a_rank_in_the_settings_is_kept(self, llava_folder: Path) -> None:
        made = plan(llava_folder, target_bits=5, config=CompressionConfig(rank=2))
        assert {matrix.config.rank for matrix in made.matrices} == {2}

    @pytest.mark.parametrize("calibration", ["hessian", "diagonal"])
    @pytest.mark.parametrize("codec", ["ring", "trellis"])
    def test_room_for_the_scales_that_data_ask_for(
        self, llama: Path, output: Path, codec: str, calibration: str
    ) -> None:
        def uneven(norm: torch.Tensor) -> torch.Tensor:
            return torch.linspace(-10, 10, len(norm)).exp()

        edit_tensor(llama, "model.layers.0.post_attention_layernorm.weight", uneven)
        config = CompressionConfig(codec=codec, state_bits=8, calibration=calibration)
        inputs = [{"input_ids": torch.arange(1, 31)[None]}]
        made = plan(llama, config=config, target_bits=7, calibration_data=inputs)
        report = compress(llama, output, plan=made, calibration_data=inputs)
        rows = {row.name: row for row in report.compressed}
        assert rows[UP].spec is not None
        # Under feedback scales depend on the weight alone.
        assert rows[UP].spec.channel_scale_in == (calibration == "diagonal")
        without = {m.name: m for m in plan(llama, config=config, target_bits=7).matrices}
        assert not without[UP].channel_scale_in  # it is the data that ask for them
        assert all(rows[m.name].nbytes_after <= m.nbytes for m in made.matrices)
        assert report.bits_per_weight <= 7

    def test_trellis_sizes_end_at_four_bits(self, llava_folder: Path, output: Path) -> None:
        config = CompressionConfig(codec="trellis", state_bits=8)
        report = compress(llava_folder, output, config=config, target_bits=3)
        assert 2.9 < report.bits_per_weight <= 3
        made = plan(llava_folder, config=config, target_bits=16)
        assert {matrix.config.bits for matrix in made.matrices} == {4.0}

    def test_small_matrices_get_more(self, llava_folder: Path) -> None:
        made = plan(llava_folder, target_bits=4.5, config=CompressionConfig(odc="none"))
        by_size = sorted(made.matrices, key=lambda matrix: matrix.weights)
        assert by_size[0].config.bits > by_size[-1].config.bits


class TestTargetSize:
    @pytest.mark.parametrize("shards", ["5GB", "20KB"])
    @pytest.mark.parametrize("size", [60_000, 66_000, "64.5KB"])
    def test_files_never_exceed_it(
        self, llava_folder: Path, output: Path, size: int | str, shards: str
    ) -> None:
        report = compress(llava_folder, output, target_size=size, max_shard_size=shards)
        limit = 64_500 if size == "64.5KB" else int(size)
        assert weight_bytes(output) <= limit
        # What is left is less than the smallest step up, and the bound on the headers' lengths.
        assert weight_bytes(output) > limit - 2_500
        assert report.bits_per_weight < 8

    def test_below_the_minimum(self, llava_folder: Path, output: Path) -> None:
        with pytest.raises(BudgetError, match="kept as they are") as caught:
            compress(llava_folder, output, target_size=1000)
        assert not output.exists()
        least = int(caught.value.minimum)
        compress(llava_folder, output, target_size=least)
        assert least - 1000 < weight_bytes(output) <= least

    def test_an_impossible_target_leaves_the_old_output(self, llama: Path, output: Path) -> None:
        compress(llama, output)
        before = folder_bytes(output)
        with pytest.raises(BudgetError):
            compress(llama, output, target_size=1000, overwrite=True)
        assert folder_bytes(output) == before


class TestRecipe:
    def test_what_it_fixes_stays_and_the_rest_shares_the_budget(self, llava_folder: Path) -> None:
        recipe = [
            {"match": "vision_tower", "bits": 5},
            {"match": "k_proj", "skip": True},
            {"match": "up_proj", "rank": 2},
            {"match": "down_proj", "codec": "product"},
        ]
        made = plan(llava_folder, target_bits=4.5, recipe=recipe)
        names = {matrix.name: matrix for matrix in made.matrices}
        for name, matrix in names.items():
            assert matrix.fixed == ("vision_tower" in name)
            assert not matrix.fixed or matrix.config.bits == 5
            assert matrix.config.rank == (2 if "up_proj" in name else 0)
            assert matrix.config.codec == ("product" if "down_proj" in name else "ring")
        assert "model.language_model.layers.0.self_attn.k_proj" in made.dense
        assert made.bits_per_weight <= 4.5
        free = [matrix for matrix in made.matrices if not matrix.fixed]
        assert sum(m.config.bits * m.weights for m in free) / sum(m.weights for m in free) < 4.5

    def test_fixed_layers_can_make_a_target_impossible(self, llava_folder: Path) -> None:
        with pytest.raises(BudgetError, match="fixed in the recipe"):
            plan(llava_folder, target_bits=3, recipe=[{"match": ".", "bits": 4}])


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target_bits": 3, "target_size": "1GB"}, "one of target_bits and target_size"),
            ({"target_bits": -1}, "positive number"),
            ({"target_bits": float("nan")}, "positive number"),
            ({"target_size": "large"}, "target_size must be"),
            ({"target_bits": 3, "sensitivity": "guess"}, "sensitivity must be one of"),
            ({"target_bits": 3, "sensitivity": "measured"}, "pass calibration_data"),
            ({"target_bits": 3, "config": CompressionConfig(bits=2)}, "contradicts"),
            ({"sensitivity": "size"}, "needs target_bits"),
        ],
    )
    def test_contradictions(
        self, llama_folder: Path, output: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            compress(llama_folder, output, **options)
        assert not output.exists()

    def test_a_plan_stands_alone(self, llama_folder: Path, output: Path) -> None:
        made = plan(llama_folder, target_bits=6)
        for options in ({"target_bits": 6.0}, {"recipe": []}, {"config": CompressionConfig()}):
            with pytest.raises(ValueError, match="a plan holds all settings"):
                compress(llama_folder, output, plan=made, **options)

    @pytest.mark.parametrize("ranks", [(), (-1,), (0.5,)])
    def test_ranks(self, llama_folder: Path, ranks: Any) -> None:
        with pytest.raises(ValueError, match="ranks must be"):
            plan(llama_folder, target_bits=3, ranks=ranks)

    def test_nonfinite_weights(self, llama: Path, output: Path) -> None:
        edit_tensor(llama, f"{UP}.weight", lambda weight: weight.fill_(float("inf")))
        with pytest.raises(NonFiniteError, match=UP):
            compress(llama, output, target_bits=6)
        with pytest.warns(UserWarning, match="kept dense"):
            report = compress(llama, output, target_size=12_000, on_nonfinite="skip")
        assert UP not in {row.name for row in report.compressed}
        assert weight_bytes(output) <= 12_000


class TestResume:
    @pytest.mark.parametrize("finished", [1, 3])
    def test_interrupted_run_gives_the_same_bytes(
        self, llava_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
    ) -> None:
        options: dict[str, Any] = {"target_size": 66_000, "max_shard_size": "20KB"}
        compress(llava_folder, tmp_path / "whole", **options)
        saved = PartialRun.save_part

        def interrupted(self: PartialRun, number: int, *rest: Any) -> Any:
            if len(list(self.folder.glob("*.part"))) >= finished:
                raise KeyboardInterrupt
            return saved(self, number, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(PartialRun, "save_part", interrupted)
            with pytest.raises(KeyboardInterrupt):
                compress(llava_folder, tmp_path / "out", **options)
        assert (tmp_path / "out" / PARTIAL_NAME).exists()
        with monkeypatch.context() as patch:
            # The earlier plan is in the state: nothing is planned twice.
            patch.setattr("llava_fa.choice.plan_target", None)
            compress(llava_folder, tmp_path / "out", **options)
            compress(llava_folder, tmp_path / "out", **options)  # finished: nothing to do
        assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")

    def test_the_manifest_holds_the_plan(self, llama_folder: Path, output: Path) -> None:
        compress(llama_folder, output, target_bits=6)
        request = json.loads((output / "llava_fa_manifest.json").read_text())["request"]
        assert BitPlan.from_dict(request["settings"]["plan"]) == plan(llama_folder, target_bits=6)

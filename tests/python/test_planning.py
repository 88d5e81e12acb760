"""Size targets on checkpoints: the written folder against the target, recipes, plans, resuming."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import edit_tensor, folder_bytes, llama_model, llava_inputs, llava_model
from llava_fa import (
    BitPlan,
    BudgetError,
    CompressionConfig,
    NonFiniteError,
    PlanError,
    compress_checkpoint,
    compress_matrix,
    plan_checkpoint,
)
from llava_fa.error_model import CODE_SIZES, code_distortion, profile_matrix
from llava_fa.partial import PARTIAL_NAME, PartialRun
from llava_fa.report import CompressionReport
from llava_fa.sensitivity import measured_weights

UP = "model.layers.0.mlp.up_proj"


def plan(source: Path, **options: Any) -> BitPlan:
    return plan_checkpoint(source, progress=False, **options)


def compress(source: Path, output: Path, **options: Any) -> CompressionReport:
    return compress_checkpoint(source, output, progress=False, **options)


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.fixture
def llama(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "source"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


class TestErrorModel:
    @pytest.mark.parametrize("row_scale", ["unbiased", "least-squares"])
    def test_distortion_falls_four_times_per_bit(self, row_scale: str) -> None:
        base = CompressionConfig(row_scale=row_scale)
        measured = [code_distortion(base.replace(bits=bits)) for bits in CODE_SIZES]
        for coarse, fine in zip(
            measured[2:-2], measured[4:], strict=True
        ):  # from 2 bits on, a bit apart
            assert 3 < coarse / fine < 5

    @pytest.mark.parametrize("bits", [1.5, 2, 3, 4])
    def test_trellis_is_predicted_too(self, bits: float) -> None:
        config = CompressionConfig(bits=bits, codec="trellis", odc="none")
        assert code_distortion(config) < code_distortion(config.replace(codec="ring"))
        weight = torch.randn(192, 160, generator=torch.Generator().manual_seed(7))
        expected = profile_matrix(weight, config).relative_error(config)
        actual = compress_matrix(weight, config.for_checkpoint()).relative_error(weight)
        assert actual == pytest.approx(expected, rel=0.1)

    @pytest.mark.parametrize("codec", ["ring", "trellis"])
    @pytest.mark.parametrize("bits", [1.5, 2.5])
    def test_distortion_is_that_of_unbiased_codes(self, bits: float, codec: str) -> None:
        config = CompressionConfig(bits=bits, codec=codec, state_bits=8)
        least = code_distortion(config.replace(row_scale="least-squares"))
        assert code_distortion(config) == pytest.approx(least / (1 - least), rel=0.01)

    @pytest.mark.parametrize("odc", ["spatial", "none"])
    @pytest.mark.parametrize("bits", [1.5, 2, 3, 4])
    def test_every_matrix_has_the_predicted_error_without_rank(self, bits: float, odc: str) -> None:
        config = CompressionConfig(bits=bits, odc=odc)
        for name, module in llava_model(seed=3).named_modules():
            if isinstance(module, torch.nn.Linear) and module.weight.numel() >= 1000:
                weight = module.weight.detach()
                expected = profile_matrix(weight, config).relative_error(config)
                # A few hundred codes scatter; the larger the matrix the closer (bench).
                actual = compress_matrix(weight, config.for_checkpoint()).relative_error(weight)
                assert actual == pytest.approx(expected, rel=0.25), name

    @pytest.mark.parametrize("rank", [4, 8])
    @pytest.mark.parametrize("bits", [2, 3])
    def test_error_with_rank_is_close_and_not_too_hopeful(self, bits: float, rank: int) -> None:
        generator = torch.Generator().manual_seed(5)
        parts = [torch.randn(*s, generator=generator) for s in ((192, 6), (6, 160), (192, 160))]
        weight = parts[0] @ parts[1] + 2 * parts[2]
        config = CompressionConfig(bits=bits, rank=rank)
        expected = profile_matrix(weight, config, (0, rank)).relative_error(config)
        actual = compress_matrix(weight, config.for_checkpoint()).relative_error(weight)
        assert 0.6 * expected < actual < 1.1 * expected

    def test_profile_knows_the_stored_scales(self) -> None:
        generator = torch.Generator().manual_seed(1)
        even = torch.randn(256, 192, generator=generator)
        uneven = even * torch.linspace(-2, 2, 192).exp()
        for weight in (even, uneven, uneven.T.contiguous()):
            spec = compress_matrix(weight, CompressionConfig()).spec
            profile = profile_matrix(weight, CompressionConfig())
            assert profile.channel_scale_in == spec.channel_scale_in
            assert profile.channel_scale_out == spec.channel_scale_out

    @pytest.mark.parametrize("size", [1e-30, 1e30, 0.0])
    def test_size_of_the_weights_does_not_matter(self, size: float) -> None:
        config = CompressionConfig(bits=2, rank=2)
        weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(2))
        weight *= torch.linspace(-2, 2, 24).exp()
        profile = profile_matrix(size * weight, config, (0, 2))
        if size:
            assert profile.relative_error(config) == pytest.approx(
                profile_matrix(weight, config, (0, 2)).relative_error(config), rel=1e-3
            )
        else:
            assert 0 <= profile.relative_error(config) < 1

    def test_nonfinite_weight(self) -> None:
        weight = torch.ones(4, 4)
        weight[1, 2] = float("nan")
        with pytest.raises(NonFiniteError):
            profile_matrix(weight, CompressionConfig())


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
            return torch.linspace(-4, 4, len(norm)).exp()

        edit_tensor(llama, "model.layers.0.post_attention_layernorm.weight", uneven)
        config = CompressionConfig(codec=codec, state_bits=8, calibration=calibration)
        inputs = [{"input_ids": torch.arange(1, 31)[None]}]
        made = plan(llama, config=config, target_bits=7, calibration_data=inputs)
        report = compress(llama, output, plan=made, calibration_data=inputs)
        rows = {row.name: row for row in report.compressed}
        assert rows[UP].spec is not None
        assert rows[UP].spec.channel_scale_in
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


class TestPlanFile:
    def test_round_trip(self, llava_folder: Path, tmp_path: Path, output: Path) -> None:
        made = plan(llava_folder, target_bits=3, recipe=[{"match": "fc1", "codec": "product"}])
        made.save(tmp_path / "plan.json")
        assert BitPlan.load(tmp_path / "plan.json") == made
        compress(llava_folder, output, plan=tmp_path / "plan.json")
        other = tmp_path / "other"
        recipe = [{"match": "fc1", "codec": "product"}]
        compress(llava_folder, other, target_bits=3, recipe=recipe)
        same = {name for name in folder_bytes(output) if name.endswith(".safetensors")}
        assert {n: folder_bytes(output)[n] for n in same} == {
            n: folder_bytes(other)[n] for n in same
        }

    def test_equal_input_gives_equal_bytes(self, llava_folder: Path, tmp_path: Path) -> None:
        for name in ("a.json", "b.json"):
            plan(llava_folder, target_bits=2.75).save(tmp_path / name)
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()

    def test_other_checkpoint(self, llava_folder: Path, llama_folder: Path, output: Path) -> None:
        made = plan(llava_folder, target_bits=3)
        with pytest.raises(
            PlanError, match=r"model\.layers\.0\.\S+ of shape .* is not in the plan"
        ):
            compress(llama_folder, output, plan=made)
        assert not output.exists()

    def test_first_mismatch_is_named(self, llama_folder: Path, tmp_path: Path) -> None:
        made = plan(llama_folder, target_bits=6)
        llama_model(intermediate_size=32).save_pretrained(tmp_path / "wider")
        with pytest.raises(
            PlanError, match=r"gate_proj has shape \[32, 16\], in the plan \[24, 16\]"
        ):
            compress(tmp_path / "wider", tmp_path / "out", plan=made)

    def test_layer_that_the_checkpoint_lacks(self, llama_folder: Path, output: Path) -> None:
        values = plan(llama_folder, target_bits=6).to_dict()
        values["dense"].append("model.layers.7.mlp.up_proj")
        with pytest.raises(PlanError, match=r"model\.layers\.7\.mlp\.up_proj is no linear layer"):
            compress(llama_folder, output, plan=BitPlan.from_dict(values))

    def test_other_weights_that_take_more(self, llama: Path, output: Path) -> None:
        made = plan(llama, target_bits=6)
        room = {matrix.name: matrix for matrix in made.matrices}[UP]
        assert not room.channel_scale_in

        def uneven(weight: torch.Tensor) -> torch.Tensor:
            return weight * torch.linspace(-20, 20, weight.shape[1]).exp()

        edit_tensor(llama, f"{UP}.weight", uneven)
        with pytest.raises(PlanError, match=rf"{UP} takes \d+ bytes, the plan gives it \d+"):
            compress(llama, output, plan=made)

    def test_data_needs_room_for_scales(self, llava_folder: Path, output: Path) -> None:
        made = plan(llava_folder, target_bits=6)
        with pytest.raises(PlanError, match="room"):
            compress(llava_folder, output, plan=made, calibration_data=[llava_inputs()])
        made = plan(llava_folder, target_bits=6, calibration_data=[llava_inputs()])
        report = compress(llava_folder, output, plan=made, calibration_data=[llava_inputs()])
        assert report.bits_per_weight <= 6

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda v: v.update(format="other"), "not a plan"),
            (lambda v: v.update(version=2), "plan version 2"),
            (lambda v: v.pop("dense"), "'dense' is missing"),
            (lambda v: v["matrices"][0].update(bits=7), "matrix model.* bits is 7"),
            (lambda v: v["matrices"][0].update(colour="red"), "unknown options"),
            (lambda v: v["matrices"][0].update(shape=[0, 4]), "matrix model"),
            (lambda v: v["matrices"][0].pop("weight"), "'weight' is missing"),
            (lambda v: v["matrices"].append(3), "expected matrices with a name"),
        ],
    )
    def test_damaged(
        self,
        llama_folder: Path,
        tmp_path: Path,
        change: Callable[[dict[str, Any]], object],
        message: str,
    ) -> None:
        values = plan(llama_folder, target_bits=6).to_dict()
        change(values)
        (tmp_path / "plan.json").write_text(json.dumps(values))
        with pytest.raises(PlanError, match=rf"plan\.json: .*{message}"):
            BitPlan.load(tmp_path / "plan.json")

    def test_no_such_file_and_no_json(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match="no such plan"):
            BitPlan.load(tmp_path / "none.json")
        (tmp_path / "text.json").write_text("{")
        with pytest.raises(PlanError, match="not valid JSON"):
            BitPlan.load(tmp_path / "text.json")


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


class TestMeasured:
    def test_weights_follow_what_a_matrix_does_to_the_answers(self, tmp_path: Path) -> None:
        model = llama_model()
        with torch.no_grad():  # a layer that nothing comes out of
            model.model.layers[0].mlp.down_proj.weight.mul_(1e-3)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        inputs = [{"input_ids": torch.arange(1, 9)[None] + k} for k in range(4)]
        kinds = ("mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj")
        names = [f"model.layers.0.{kind}" for kind in kinds]
        found = measured_weights(model, inputs, dict.fromkeys(names, CompressionConfig()))
        assert found[names[2]] > 10 * found[names[0]]
        assert found[names[2]] > 10 * found[names[1]]
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_padding_does_not_count(self) -> None:
        model = llama_model()
        name = "model.layers.0.self_attn.o_proj"
        ids = torch.arange(1, 9)[None]
        padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1)
        mask = torch.cat([torch.ones(1, 8), torch.zeros(1, 3)], 1).long()
        settings = {name: CompressionConfig()}
        plain = measured_weights(model, [{"input_ids": ids}], settings)
        masked = measured_weights(model, [{"input_ids": padded, "attention_mask": mask}], settings)
        assert masked[name] == pytest.approx(plain[name], rel=1e-3)

    def test_from_end_to_end(self, llava_folder: Path) -> None:
        inputs = [llava_inputs(1), llava_inputs(2)]
        made = plan(llava_folder, target_bits=5, sensitivity="measured", calibration_data=inputs)
        assert len({matrix.weight for matrix in made.matrices}) > 10
        assert made.bits_per_weight <= 5

    def test_nonfinite_model(self) -> None:
        model = llama_model()
        with torch.no_grad():
            model.lm_head.weight.fill_(float("nan"))
        with pytest.raises(NonFiniteError, match="dense model"):
            measured_weights(model, [{"input_ids": torch.ones(1, 3, dtype=torch.long)}], {})

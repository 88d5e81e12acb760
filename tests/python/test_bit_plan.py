"""Plan files: what is saved is what is compressed, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import UP, compress, edit_tensor, folder_bytes, llama_model, llava_inputs, plan
from llava_fa import BitPlan, CompressionConfig, PlanError


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

    def test_scales_by_the_inputs_need_room(self, llava_folder: Path, output: Path) -> None:
        config, data = CompressionConfig(calibration="diagonal"), [llava_inputs()]
        made = plan(llava_folder, config=config, target_bits=6)
        with pytest.raises(PlanError, match="room"):
            compress(llava_folder, output, plan=made, calibration_data=data)
        made = plan(llava_folder, config=config, target_bits=6, calibration_data=data)
        report = compress(llava_folder, output, plan=made, calibration_data=data)
        assert report.bits_per_weight <= 6

    def test_under_feedback_a_plan_made_without_data_fits(
        self, llava_folder: Path, output: Path
    ) -> None:
        made = plan(llava_folder, target_bits=6)
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

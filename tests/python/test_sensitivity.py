"""How much each matrix counts for a model's answers, measured on examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import llama_model, llava_inputs, plan
from llava_fa import CompressionConfig, NonFiniteError
from llava_fa.sensitivity import measured_weights


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

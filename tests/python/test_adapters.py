"""Adapters of peft on packed layers: they attach, learn alone, and are saved without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear

from conftest import llava_inputs
from llava_fa.nn import FourierLinear
from packed_models import assert_near, load, load_dense, logits

TARGETS = ["q_proj", "v_proj", "fc1", "linear_1"]


def adapted(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **options)
    return get_peft_model(model, config)


def loss_of(model: Any) -> torch.Tensor:
    inputs = llava_inputs()
    result: torch.Tensor = model(**inputs, labels=inputs["input_ids"]).loss
    return result


def trained(model: Any, steps: int = 1) -> list[float]:
    """Train the adapters; return the losses before, between and after the steps."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*losses, float(loss_of(model).detach())]


def test_adapters_attach_to_packed_layers(packed_folder: Path) -> None:
    model = adapted(load(packed_folder))
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 2 * 2 + 2 + 2 + 1  # vision q, v, fc1 of two layers; text q, v; projector
    assert all(type(layer.get_base_layer()) is FourierLinear for layer in layers)
    assert torch.equal(logits(model), logits(load(packed_folder)))  # adapters begin at zero


def test_training_lowers_the_loss_through_the_adapters_alone(packed_folder: Path) -> None:
    model = adapted(load(packed_folder))
    frozen = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name
    }
    losses = trained(model, steps=3)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    # LLaVA takes the vision tower's features from before its last layer.
    assert with_gradient == {
        name
        for name, _ in model.named_parameters()
        if "lora_" in name and "encoder.layers.1." not in name
    }
    for name, tensor in frozen.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_training_equals_that_of_the_dense_runtime(packed_folder: Path) -> None:
    found = trained(adapted(load(packed_folder)), steps=3)
    expected = trained(adapted(load_dense(packed_folder)), steps=3)
    # Rounding of float32, grown by a few steps.
    assert found == pytest.approx(expected, rel=1e-4)


def test_training_in_bfloat16(packed_folder: Path) -> None:
    losses = trained(adapted(load(packed_folder, dtype=torch.bfloat16)))
    assert losses[1] < losses[0]


def test_saved_adapters_load_onto_packed_and_dense_layers(
    packed_folder: Path, output: Path
) -> None:
    model = adapted(load(packed_folder))
    trained(model)
    model.save_pretrained(output)
    expected = logits(model.eval())
    for loader in (load, load_dense):
        again = PeftModel.from_pretrained(loader(packed_folder), output)
        assert_near(logits(again.eval()), expected)
    assert_near(logits(again.merge_and_unload()), expected)  # the last one is dense


def test_removing_adapters_gives_the_packed_model_back(packed_folder: Path) -> None:
    model = adapted(load(packed_folder))
    trained(model)
    assert torch.equal(logits(model.unload().eval()), logits(load(packed_folder)))


@pytest.mark.parametrize("safe", [False, True])
def test_merging_is_refused_and_changes_nothing(packed_folder: Path, safe: bool) -> None:
    """A packed layer has no weight that could take the adapter in; dense ones have.

    The error says how to get them.
    """
    model = adapted(load(packed_folder))
    trained(model)
    expected = logits(model.eval())
    with pytest.raises(AttributeError, match=r"no dense weight.*adapter.*runtime='dense'"):
        model.merge_and_unload(safe_merge=safe)
    assert torch.equal(logits(model), expected)

"""Reading compressed layers past transformers: same model, same refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

from conftest import described_modules, edit_quantization, edit_tensor, read_all
from llava_fa import hf
from llava_fa.errors import FormatError
from llava_fa.nn import FourierLinear
from llava_fa.verify import verify_checkpoint
from packed_models import load, load_dense, logits


def unexpected(folder: Path, auto: Any = AutoModelForImageTextToText) -> set[str]:
    _, info = auto.from_pretrained(folder, output_loading_info=True)
    return set(info["unexpected_keys"])


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModel])
@pytest.mark.parametrize("loader", [load, load_dense])
def test_the_model_is_the_one_that_transformers_reads(
    loader: Any, auto: Any, packed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it does where the model is not on the CPU alone."""
    found = loader(packed_folder, auto)
    monkeypatch.setattr(hf, "_is_on_the_cpu", lambda device_map: False)
    expected = loader(packed_folder, auto)
    state = expected.state_dict()
    assert list(found.state_dict()) == list(state)
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name
    modules = zip(found.named_modules(), expected.named_modules(), strict=True)
    for (name, module), (other_name, other) in modules:
        assert (name, type(module), module.training) == (other_name, type(other), other.training)


@pytest.mark.parametrize(
    "device_map",
    [
        None,
        "cpu",
        "auto",
        {"": "cpu"},
        {"": torch.device("cpu")},
        {"model": "cpu", "lm_head": "cpu"},
    ],
    ids=str,
)
def test_device_maps_of_the_cpu(packed_folder: Path, device_map: Any) -> None:
    model = load(packed_folder, device_map=device_map)
    assert any(type(module) is FourierLinear for module in model.modules())
    assert torch.equal(logits(model), logits(load(packed_folder)))


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [(None, True), ("cpu", True), ("cuda", False), ({"a": "cpu", "b": 0}, False), ("auto", False)],
)
def test_only_models_on_the_cpu_are_read_so(device_map: Any, expected: bool) -> None:
    assert hf._is_on_the_cpu(device_map) is expected


def test_what_is_unexpected_is_still_reported(damaged: Path) -> None:
    assert unexpected(damaged) == set()
    file = next(damaged.glob("*.safetensors"))
    save_file(load_file(file) | {"model.surplus.weight": torch.zeros(2)}, file, {"format": "pt"})
    assert unexpected(damaged) == {"model.surplus.weight"}


def test_a_missing_bias_is_named(damaged: Path) -> None:
    bias = next(name for name in read_all(damaged) if name.endswith("q_proj.bias"))
    edit_tensor(damaged, bias, lambda _: None)
    with pytest.raises(FormatError, match=r"q_proj\.bias was not loaded"):
        load(damaged)


def test_a_compressed_layer_that_the_description_lacks(damaged: Path) -> None:
    """Else its place would be filled at random, with a warning that is easily missed."""
    modules = described_modules(damaged)
    left_out = min(modules)
    del modules[left_out]
    edit_quantization(damaged, modules=modules)
    with pytest.raises(FormatError, match=rf"{left_out} is stored compressed, but config\.json"):
        load(damaged)
    with pytest.raises(FormatError, match=rf"safetensors: the layer {left_out}"):
        verify_checkpoint(damaged)

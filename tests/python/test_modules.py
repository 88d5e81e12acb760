"""Which tensors are weights of linear layers, under which canonical names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import edit_tensor, llama_model, llava_model
from llava_fa.errors import CheckpointError
from llava_fa.modules import ModelLayout, build_meta_model, check_loadable, map_layers
from llava_fa.shards import Checkpoint


def layout_of(folder: Path) -> ModelLayout:
    checkpoint = Checkpoint.open(folder)
    return map_layers(checkpoint, build_meta_model(checkpoint))


def linear_names(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("layout_name", ["llava_folder", "old_hub_folder"])
def test_both_layouts_give_the_same_canonical_names(
    layout_name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout_name)
    layers = layout_of(folder).layers
    model = llava_model()
    assert set(layers) == linear_names(model)
    tensors = Checkpoint.open(folder).tensors
    for name, layer in layers.items():
        stored = tensors[layer.tensor].read()
        assert torch.equal(stored, model.get_submodule(name).weight)


def test_the_layouts_really_differ(llava_folder: Path, old_hub_folder: Path) -> None:
    assert set(Checkpoint.open(llava_folder).tensors) != set(
        Checkpoint.open(old_hub_folder).tensors
    )


def test_only_the_output_embedding_is_kept(llava_folder: Path) -> None:
    kept = {
        name: layer.kept for name, layer in layout_of(llava_folder).layers.items() if layer.kept
    }
    assert kept == {"lm_head": "output embedding"}


def test_tied_weight_cannot_be_compressed(tmp_path: Path) -> None:
    llava_model(tied=True).save_pretrained(tmp_path)
    head = layout_of(tmp_path).layers["lm_head"]
    assert head.fixed
    assert "tied" in head.kept


def test_text_model(llama_folder: Path) -> None:
    layers = layout_of(llama_folder).layers
    assert sum(1 for layer in layers.values() if not layer.kept) == 7


def test_falls_back_to_the_auto_class(llama_folder: Path, tmp_path: Path) -> None:
    config = json.loads((llama_folder / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((llama_folder / "model.safetensors").read_bytes())
    assert set(layout_of(tmp_path).layers) == set(layout_of(llama_folder).layers)


def test_missing_linear_weight_is_an_error(tmp_path: Path) -> None:
    llama_model().save_pretrained(tmp_path)
    edit_tensor(tmp_path, "model.layers.0.mlp.up_proj.weight", lambda tensor: None)
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        layout_of(tmp_path)


def test_foreign_weights_are_an_error(tmp_path: Path) -> None:
    llama_model().config.save_pretrained(tmp_path)
    save_file({"something.else": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="incomplete"):
        layout_of(tmp_path)


def test_wrong_shape_is_an_error(tmp_path: Path) -> None:
    llama_model().save_pretrained(tmp_path)
    edit_tensor(tmp_path, "model.layers.0.mlp.up_proj.weight", lambda tensor: tensor[:-1])
    with pytest.raises(CheckpointError, match=r"\[23, 16\].*needs \[24, 16\]"):
        layout_of(tmp_path)


def test_two_tensors_for_one_weight_are_an_error(tmp_path: Path) -> None:
    model = llava_model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["language_model.lm_head.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="are both the model's"):
        layout_of(tmp_path)


def test_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="knows no such model"):
        layout_of(tmp_path)


def test_fused_experts_are_reported(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "vocab_size": 40,
    }
    MixtralForCausalLM(MixtralConfig(**sizes)).save_pretrained(tmp_path)
    layout = layout_of(tmp_path)
    assert any("expert" in warning for warning in layout.warnings)
    compressed = [name for name, layer in layout.layers.items() if not layer.kept]
    assert len(compressed) == 4  # the attention; the experts are one fused tensor each


def test_subclasses_of_linear_are_named(llama_folder: Path) -> None:
    class Scaled(torch.nn.Linear):
        pass

    checkpoint = Checkpoint.open(llama_folder)
    model = build_meta_model(checkpoint)
    name = "model.layers.0.mlp.up_proj"
    model.set_submodule(name, Scaled(16, 24, bias=False, device="meta"))
    layout = map_layers(checkpoint, model)
    assert name not in layout.layers
    assert any(f"{name} (Scaled)" in warning for warning in layout.warnings)


class TestLoadableNames:
    def test_canonical_names_are_accepted(self, llava_folder: Path) -> None:
        model = build_meta_model(Checkpoint.open(llava_folder))
        names = linear_names(model) - {"lm_head"}
        check_loadable(model, {name: [f"{name}.codes"] for name in names})

    def test_a_name_that_would_be_renamed_is_refused(self, llava_folder: Path) -> None:
        model = build_meta_model(Checkpoint.open(llava_folder))
        names = ["lm_head.codes", "language_model.lm_head.codes"]
        with pytest.raises(CheckpointError, match="would look for the packed tensor") as caught:
            check_loadable(model, {"lm_head": names})
        assert "tensor language_model.lm_head.codes under lm_head.codes" in str(caught.value)

"""Compressing a dense checkpoint while transformers loads it, against compressing it beforehand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

import llava_fa
from conftest import Q, compress, edit_tensor, llava_inputs, llava_model, read_all
from llava_fa import CompressionConfig
from llava_fa.errors import CheckpointError, DeviceError, FormatError, NonFiniteError
from llava_fa.hf import LlavaFaConfig
from llava_fa.nn import FourierLinear
from llava_fa.packed_checkpoint import PackedCheckpoint
from llava_fa.verify import inspect_checkpoint
from packed_models import load, load_dense, logits


def compressing(
    folder: Path, auto: Any = AutoModelForImageTextToText, *, runtime: Any = None, **options: Any
) -> Any:
    """Load a dense folder with these options of compression."""
    loading = {"dtype", "device_map", "low_cpu_mem_usage"} & options.keys()
    others = {name: options.pop(name) for name in loading}
    config = LlavaFaConfig(**{"bits": 4, **options}, runtime=runtime)
    return auto.from_pretrained(folder, quantization_config=config, **others).eval()


def packed_layers(model: nn.Module) -> dict[str, FourierLinear]:
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, FourierLinear)}


def assert_same_layers(found: nn.Module, expected: nn.Module) -> None:
    layers, others = packed_layers(found), packed_layers(expected)
    assert layers.keys() == others.keys()
    for name, layer in layers.items():
        assert layer.spec == others[name].spec, name
        for suffix, tensor in layer.stored_tensors().items():
            assert torch.equal(tensor, others[name].get_buffer(suffix)), f"{name}.{suffix}"


class TestEquality:
    @pytest.mark.parametrize("source", ["llava_folder", "old_hub_folder"])
    @pytest.mark.parametrize(
        "options",
        [{"bits": 3}, {"bits": 2, "codec": "trellis"}, {"bits": 3, "rank": 2, "seed": 5}],
        ids=str,
    )
    def test_layers_and_logits_are_those_of_the_compressed_folder(
        self, source: str, options: dict[str, Any], output: Path, request: pytest.FixtureRequest
    ) -> None:
        folder = request.getfixturevalue(source)
        compress(folder, output, CompressionConfig(**options))
        found, expected = compressing(folder, **options), load(output)
        assert packed_layers(found)
        assert_same_layers(found, expected)
        assert torch.equal(logits(found), logits(expected))
        assert type(found.lm_head) is nn.Linear

    def test_the_dense_runtime_gives_the_decoded_weights(
        self, llava_folder: Path, output: Path
    ) -> None:
        compress(llava_folder, output, CompressionConfig(bits=4))
        found, expected = compressing(llava_folder, runtime="dense"), load_dense(output)
        assert not packed_layers(found)
        assert found.state_dict().keys() == expected.state_dict().keys()
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name]), name
        assert found.half().dtype == torch.float16  # an ordinary model

    @pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
    def test_text_models_with_and_without_head(
        self, auto: Any, llama_folder: Path, output: Path
    ) -> None:
        compress(llama_folder, output, CompressionConfig(bits=4))
        found = compressing(llama_folder, auto)
        assert len(packed_layers(found)) == 7
        assert_same_layers(found, load(output, auto))

    def test_tied_embeddings(self, tmp_path: Path) -> None:
        llava_model(tied=True).save_pretrained(tmp_path)
        model = compressing(tmp_path)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    def test_answers(self, llava_folder: Path, output: Path) -> None:
        compress(llava_folder, output, CompressionConfig(bits=4))
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        answers = [
            model.generate(**llava_inputs(), **options)
            for model in (compressing(llava_folder), load(output))
        ]
        assert torch.equal(*answers)


class TestOptions:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "options",
        [{}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}, {"low_cpu_mem_usage": True}],
        ids=str,
    )
    def test_dtype_and_placement(
        self, llava_folder: Path, dtype: torch.dtype, options: dict[str, Any]
    ) -> None:
        model = compressing(llava_folder, dtype=dtype, **options)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert packed_layers(model)
        assert logits(model).isfinite().all()

    def test_the_environment_chooses_the_runtime(
        self, llava_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAVA_FA_RUNTIME", "dense")
        assert not packed_layers(compressing(llava_folder))
        assert packed_layers(compressing(llava_folder, runtime="packed"))

    def test_one_configuration_serves_several_checkpoints(
        self, llava_folder: Path, llama_folder: Path
    ) -> None:
        config = LlavaFaConfig(bits=3)
        for auto, folder in (
            (AutoModelForImageTextToText, llava_folder),
            (AutoModelForCausalLM, llama_folder),
        ):
            layers = packed_layers(auto.from_pretrained(folder, quantization_config=config))
            assert {layer.spec.code_bits for layer in layers.values()} == {6}

    def test_a_compressed_folder_is_loaded_as_it_is(self, packed_folder: Path) -> None:
        with pytest.warns(UserWarning, match="from the model will be used"):
            model = compressing(packed_folder, bits=2)
        specs = PackedCheckpoint.open(packed_folder).specs
        assert {name: layer.spec for name, layer in packed_layers(model).items()} == specs


class TestSaving:
    @pytest.mark.parametrize("source", ["llava_folder", "old_hub_folder"])
    def test_round_trip(self, source: str, output: Path, request: pytest.FixtureRequest) -> None:
        model = compressing(request.getfixturevalue(source), bits=3, rank=2)
        model.save_pretrained(output, max_shard_size="30KB")
        assert inspect_checkpoint(output)
        again = load(output)
        assert_same_layers(again, model)
        assert torch.equal(logits(again), logits(model))
        assert PackedCheckpoint.open(output).specs == {
            name: layer.spec for name, layer in packed_layers(model).items()
        }

    def test_a_model_loaded_densely_is_saved_densely(
        self, llava_folder: Path, output: Path
    ) -> None:
        model = compressing(llava_folder, runtime="dense")
        model.save_pretrained(output)
        assert torch.equal(logits(load_dense(output)), logits(model))
        assert not any("codes" in name for name in read_all(output))


class TestDevices:
    def test_weights_are_compressed_where_it_is_asked_for(
        self, llava_folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved: list[torch.device] = []

        def to_device(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
            moved.append(device)
            return weight.cpu()

        monkeypatch.setattr("llava_fa.while_loading.compression_device", torch.device)
        monkeypatch.setattr("llava_fa.while_loading.to_device", to_device)
        found = compressing(llava_folder, compression_device="cuda:1")
        assert set(moved) == {torch.device("cuda:1")}
        assert len(moved) == len(packed_layers(found))
        assert_same_layers(found, compressing(llava_folder))
        found.save_pretrained(output)
        assert "cuda" not in (output / "config.json").read_text()

    def test_unknown_ones(self, llava_folder: Path) -> None:
        with pytest.raises(ValueError, match="device is 'tpu', expected 'cpu', 'cuda'"):
            compressing(llava_folder, compression_device="tpu")

    @pytest.mark.skipif(llava_fa.cuda_available(), reason="a GPU can be used here")
    def test_no_gpu(self, llava_folder: Path) -> None:
        with pytest.raises(DeviceError, match="device is 'cuda', but no GPU can be used: "):
            compressing(llava_folder, compression_device="cuda")


class TestBadInput:
    def test_without_options_a_dense_folder_is_refused(self, llava_folder: Path) -> None:
        with pytest.raises(FormatError, match=r"dense.*LlavaFaConfig\(bits=4\)"):
            load(llava_folder)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bits": 9}, "bits is 9, expected 1 to 5"),
            ({"bits": 4, "codek": "ring"}, "unknown options ['codek']"),
            ({"codec": "ring", "modules": {}, "bit": 4}, "unknown options ['bit']"),
        ],
        ids=str,
    )
    def test_wrong_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            LlavaFaConfig(**options)

    def test_a_weight_that_is_not_finite_is_named(self, llama: Path) -> None:
        edit_tensor(llama, f"{Q}.weight", lambda tensor: tensor.fill_(float("nan")))
        with pytest.raises(NonFiniteError, match=rf"tensor {re.escape(Q)}\.weight: "):
            compressing(llama, AutoModelForCausalLM)

    def test_a_missing_weight_is_named(self, llama: Path) -> None:
        edit_tensor(llama, f"{Q}.weight", lambda tensor: None)
        with pytest.raises(CheckpointError, match=re.escape(f"{Q}.weight")):
            compressing(llama, AutoModelForCausalLM)

    def test_a_state_dict_instead_of_files(self, llava_folder: Path) -> None:
        model = llava_model()
        with pytest.raises(CheckpointError, match="needs a checkpoint's files"):
            type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=model.state_dict(),
                quantization_config=LlavaFaConfig(bits=4),
            )

"""Models that keep their matrices packed, against the same models decoded at load."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
)

from conftest import (
    compress,
    edit_index,
    edit_tensor,
    llama_model,
    llava_inputs,
    llava_model,
    read_all,
)
from llava_fa import CompressionConfig
from llava_fa.decompress import decompress_checkpoint
from llava_fa.errors import FormatError
from llava_fa.hf import LlavaFaConfig
from llava_fa.loading import load_model
from llava_fa.nn import FourierLinear
from llava_fa.packed_checkpoint import PackedCheckpoint
from llava_fa.verify import inspect_checkpoint, verify_checkpoint
from packed_models import assert_near, load, load_dense, logits

Q = "model.language_model.layers.0.self_attn.q_proj"


def packed_layers(model: nn.Module) -> dict[str, FourierLinear]:
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, FourierLinear)}


def batch(seeds: tuple[int, ...] = (1, 2, 3)) -> dict[str, torch.Tensor]:
    """Several images and questions; the first question is shorter, padded at the left."""
    rows = [llava_inputs(seed) for seed in seeds]
    together = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    ids, mask = together["input_ids"], together["attention_mask"]
    ids[0] = torch.cat([torch.zeros(2, dtype=torch.long), ids[0, :-2]])
    mask[0, :2] = 0
    return together


def answers(model: Any, **options: Any) -> torch.Tensor:
    result: torch.Tensor = model.generate(
        **batch(), max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, **options
    )
    return result


def swap(folder: Path, one: str, other: str, suffixes: list[str]) -> None:
    """Exchange tensors of two modules."""
    stored = read_all(folder)
    for suffix in suffixes:
        first, second = f"{one}.{suffix}", f"{other}.{suffix}"
        edit_tensor(folder, first, lambda _, name=second: stored[name])
        edit_tensor(folder, second, lambda _, name=first: stored[name])


@pytest.fixture(scope="module")
def packed(packed_folder: Path) -> Any:
    """The small LLaVA with packed layers. Read only."""
    return load(packed_folder)


@pytest.fixture(scope="module")
def dense(packed_folder: Path) -> Any:
    """The same, decoded. Read only."""
    return load_dense(packed_folder)


class TestEquality:
    def test_every_compressed_layer_is_packed(self, packed: Any, packed_folder: Path) -> None:
        specs = PackedCheckpoint.open(packed_folder).specs
        layers = packed_layers(packed)
        assert {name: layer.spec for name, layer in layers.items()} == specs
        assert type(packed.lm_head) is nn.Linear

    @pytest.mark.parametrize("options", [{"rank": 2}, {"codec": "trellis", "bits": 2}], ids=str)
    def test_logits_equal_those_of_the_dense_runtime(
        self, options: dict[str, Any], old_hub_folder: Path, output: Path
    ) -> None:
        compress(old_hub_folder, output, CompressionConfig(**{"bits": 3, **options}))
        assert_near(logits(load(output), batch()), logits(load_dense(output), batch()))

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_answers_equal_those_of_the_dense_runtime(
        self, packed: Any, dense: Any, use_cache: bool
    ) -> None:
        found = answers(packed, use_cache=use_cache)
        assert torch.equal(found, answers(dense, use_cache=use_cache))

    def test_biases(self, packed: Any, dense: Any) -> None:
        with_bias = {
            name for name, layer in packed_layers(packed).items() if layer.bias is not None
        }
        assert any("vision_tower" in name for name in with_bias)
        for name in with_bias:
            assert torch.equal(packed.get_submodule(name).bias, dense.get_submodule(name).bias)

    def test_tied_embeddings(self, tmp_path: Path) -> None:
        llava_model(tied=True).save_pretrained(tmp_path / "source")
        compress(tmp_path / "source", tmp_path / "packed")
        model = load(tmp_path / "packed")
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert_near(logits(model), logits(load_dense(tmp_path / "packed")))

    def test_text_model_with_skips_and_a_compressed_head(
        self, llama_folder: Path, output: Path
    ) -> None:
        recipe = [
            {"match": "lm_head", "compress": True, "bits": 5},
            {"match": ".*down_proj", "skip": True},
        ]
        compress(llama_folder, output, recipe=recipe)
        model = load(output, AutoModelForCausalLM)
        assert type(model.lm_head) is FourierLinear
        assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
        ids = {"input_ids": torch.arange(12)[None]}
        assert_near(logits(model, ids), logits(load_dense(output, AutoModelForCausalLM), ids))

    def test_base_model_without_head(self, packed_folder: Path, output: Path) -> None:
        base = load(packed_folder, AutoModel)
        assert type(base.language_model.layers[0].self_attn.q_proj) is FourierLinear
        base.save_pretrained(output)
        again = load(output, AutoModel)
        with torch.inference_mode():
            first, second = base(**llava_inputs())[0], again(**llava_inputs())[0]
        assert torch.equal(first, second)


class TestOptions:
    def test_packed_is_the_default_without_a_gpu(
        self, packed_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load_plainly = AutoModelForImageTextToText.from_pretrained
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert packed_layers(load_plainly(packed_folder))
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert not packed_layers(load_plainly(packed_folder))
        monkeypatch.setenv("LLAVA_FA_RUNTIME", "packed")
        assert packed_layers(load_plainly(packed_folder))

    def test_the_runtime_is_chosen_by_a_configuration(self, packed_folder: Path) -> None:
        assert not packed_layers(load_dense(packed_folder))
        with pytest.warns(UserWarning, match="runtime"):
            asked = AutoModelForImageTextToText.from_pretrained(
                packed_folder, quantization_config=LlavaFaConfig(runtime="dense")
            )
        assert not packed_layers(asked)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "options", [{}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}], ids=str
    )
    def test_dtype_and_placement(
        self, packed_folder: Path, dtype: torch.dtype, options: dict[str, Any]
    ) -> None:
        model = load(packed_folder, dtype=dtype, **options)
        assert model.dtype == dtype
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        stored = read_all(packed_folder)
        for name, layer in packed_layers(model).items():
            for suffix, tensor in layer.stored_tensors().items():
                assert tensor.dtype == stored[f"{name}.{suffix}"].dtype
                assert torch.equal(tensor, stored[f"{name}.{suffix}"])
        assert logits(model).isfinite().all()

    def test_bfloat16_answers_are_as_near_as_the_dense_ones(
        self, packed_folder: Path, dense: Any
    ) -> None:
        """Of the float32 model; packed layers round less than dense ones, whose weight is cast."""
        expected = logits(dense)
        errors = [
            float((logits(loader(packed_folder, dtype=torch.bfloat16)) - expected).square().sum())
            for loader in (load, load_dense)
        ]
        assert errors[0] < 2 * errors[1]

    def test_casting_the_model(self, packed_folder: Path) -> None:
        model = load(packed_folder).to(torch.bfloat16)
        stored = read_all(packed_folder)
        state = model.state_dict()
        assert torch.equal(state[f"{Q}.row_scale"], stored[f"{Q}.row_scale"])
        assert logits(model).isfinite().all()

    def test_loading_without_random_weights(self, packed_folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert packed_layers(load_model(packed_folder, runtime="packed"))
            assert not packed_layers(load_model(packed_folder, runtime="dense"))

    def test_dense_folders_load_whatever_the_runtime(self, llava_folder: Path) -> None:
        assert not packed_layers(load_model(llava_folder, runtime="packed"))

    def test_a_configuration_object(self, packed_folder: Path) -> None:
        config = AutoConfig.from_pretrained(packed_folder)
        config.quantization_config["runtime"] = "dense"
        model = AutoModelForImageTextToText.from_pretrained(packed_folder, config=config)
        assert not packed_layers(model)

    def test_compiled_model(self, packed: Any) -> None:
        compiled: Any = torch.compile(packed, backend="aot_eager", fullgraph=False)
        assert_near(logits(compiled), logits(packed))

    def test_copies(self, packed: Any) -> None:
        assert torch.equal(logits(copy.deepcopy(packed)), logits(packed))


class TestMemory:
    def test_resident_bytes_are_the_stored_ones(self, packed: Any, packed_folder: Path) -> None:
        """After running: nothing of a matrix is kept besides its buffers."""
        logits(packed)
        specs = PackedCheckpoint.open(packed_folder).specs
        for name, layer in packed_layers(packed).items():
            buffers = {tensor.untyped_storage().data_ptr(): tensor for tensor in layer.buffers()}
            resident = sum(tensor.untyped_storage().nbytes() for tensor in buffers.values())
            assert resident == specs[name].nbytes, name
            # The core would copy what is not aligned.
            assert all(at % tensor.itemsize == 0 for at, tensor in buffers.items())


class TestSaving:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("source", ["llava_folder", "old_hub_folder"])
    def test_round_trip(
        self,
        source: str,
        dtype: torch.dtype,
        tmp_path: Path,
        request: pytest.FixtureRequest,
    ) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        compress(request.getfixturevalue(source), first, CompressionConfig(bits=3, rank=2))
        model = load(first, dtype=dtype)
        model.save_pretrained(second, max_shard_size="30KB")
        before, after = read_all(first), read_all(second)
        for name in PackedCheckpoint.open(first).packed_names():
            assert before[name].dtype == after[name].dtype
            assert before[name].numpy().tobytes() == after[name].numpy().tobytes(), name
        assert torch.equal(logits(load(second, dtype=dtype)), logits(model))
        assert_near(logits(load_dense(second, dtype=dtype)), logits(load_dense(first, dtype=dtype)))

    def test_the_saved_folder_is_one_of_ours(self, packed: Any, dense: Any, tmp_path: Path) -> None:
        packed.save_pretrained(tmp_path / "saved")
        config = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "llava_fa"
        assert "runtime" not in config["quantization_config"]
        assert inspect_checkpoint(tmp_path / "saved")
        decompress_checkpoint(tmp_path / "saved", tmp_path / "dense", progress=False)
        assert torch.equal(logits(load_dense(tmp_path / "dense")), logits(dense))


class TestDamage:
    @pytest.mark.parametrize("runtime", ["fast", "", 1])
    def test_unknown_runtime(self, runtime: Any) -> None:
        expected = re.escape(f"runtime is {runtime!r}, expected one of ('dense', 'packed')")
        with pytest.raises(ValueError, match=expected):
            LlavaFaConfig(runtime=runtime)

    def test_damaged_values_are_found_when_loading(self, damaged: Path) -> None:
        edit_tensor(damaged, f"{Q}.row_scale", lambda tensor: tensor.fill_(float("nan")))
        with pytest.raises(FormatError, match=rf"{Q}.*row_scale"):
            load(damaged)

    @pytest.mark.parametrize("suffix", ["codes", "row_scale", "header"])
    def test_a_missing_tensor_is_named_and_others_load_afterwards(
        self, damaged: Path, packed_folder: Path, packed: Any, suffix: str
    ) -> None:
        edit_tensor(damaged, f"{Q}.{suffix}", lambda tensor: None)
        edit_index(damaged, f"{Q}.{suffix}")
        with pytest.raises(FormatError, match=rf"{Q}\.{suffix} is missing"):
            load(damaged)
        assert torch.equal(logits(load(packed_folder)), logits(packed))

    @pytest.mark.parametrize("suffix", ["codes", "row_scale", "matrix_scale", "header"])
    def test_a_tensor_of_another_shape_is_named(self, damaged: Path, suffix: str) -> None:
        edit_tensor(damaged, f"{Q}.{suffix}", lambda tensor: torch.cat([tensor, tensor]))
        with pytest.raises(FormatError, match=rf"{Q}\.{suffix}: expected"):
            load(damaged)

    @pytest.mark.parametrize(
        ("other", "suffix"),
        [("mlp.up_proj", "codes"), ("mlp.up_proj", "header"), ("self_attn.k_proj", "row_scale")],
    )
    def test_tensors_swapped_between_shapes_are_noticed(
        self, damaged: Path, other: str, suffix: str
    ) -> None:
        """The error names one of the matrices."""
        swap(damaged, Q, Q.replace("self_attn.q_proj", other), [suffix])
        with pytest.raises(FormatError, match=rf"{Q}|{re.escape(other)}"):
            load(damaged)

    def test_matrices_of_one_shape_that_are_swapped_are_found_by_their_hashes(
        self, damaged: Path
    ) -> None:
        """Each fits in the other's place: only verifying the damaged tells."""
        swap(damaged, Q, Q.replace("q_proj", "o_proj"), ["header", "codes", "row_scale"])
        assert not verify_checkpoint(damaged).ok

    def test_a_header_of_another_matrix(self, damaged: Path) -> None:
        def reseeded(header: torch.Tensor) -> torch.Tensor:
            header[8] += 1
            return header

        edit_tensor(damaged, f"{Q}.header", reseeded)
        with pytest.raises(FormatError, match=rf"{Q}\.header says"):
            load(damaged)

    @pytest.mark.parametrize("ending", ["q_proj.codes", "fc1.bias"])
    def test_a_tensor_missing_from_a_state_dict(self, packed_folder: Path, ending: str) -> None:
        state = read_all(packed_folder)
        del state[next(name for name in state if name.endswith(ending))]
        config = AutoConfig.from_pretrained(packed_folder)
        config.quantization_config["runtime"] = "packed"
        with pytest.raises(FormatError, match=rf"{re.escape(ending)} was not loaded"):
            LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=state)


def test_a_model_that_was_not_compressed_is_refused(tmp_path: Path) -> None:
    llama_model().save_pretrained(tmp_path)
    with pytest.raises(FormatError, match="compress_checkpoint"):
        load(tmp_path, AutoModelForCausalLM)

"""Loading compressed checkpoints through transformers, decoded to dense weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from conftest import (
    described_modules,
    edit_index,
    edit_quantization,
    edit_tensor,
    llama_model,
    llava_inputs,
    llava_model,
    read_all,
)
from llava_fa import CompressionConfig
from llava_fa.compress import compress_checkpoint
from llava_fa.decompress import decompress_checkpoint
from llava_fa.errors import FormatError
from llava_fa.hf import LlavaFaConfig
from llava_fa.loading import load_model
from packed_models import load_dense as load

Q = "model.language_model.layers.0.self_attn.q_proj"


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(**llava_inputs()).logits.float()


class TestEquality:
    @pytest.mark.parametrize("source", ["llava_folder", "old_hub_folder"])
    @pytest.mark.parametrize("rank", [0, 2])
    def test_equals_the_decompressed_checkpoint(
        self, source: str, rank: int, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        folder = request.getfixturevalue(source)
        config = CompressionConfig(bits=3, rank=rank)
        compress_checkpoint(folder, tmp_path / "packed", config, progress=False)
        decompress_checkpoint(tmp_path / "packed", tmp_path / "dense", progress=False)
        model, dense = load(tmp_path / "packed"), load(tmp_path / "dense")
        state, expected = model.state_dict(), dense.state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[name]), name
        assert torch.equal(logits(model), logits(dense))

    def test_answers_are_near_those_of_the_source(self, llava_folder: Path, tmp_path: Path) -> None:
        original, errors = logits(llava_model()), []
        for bits in (2, 5):
            output = tmp_path / str(bits)
            compress_checkpoint(llava_folder, output, CompressionConfig(bits=bits), progress=False)
            difference = logits(load(output)) - original
            errors.append(float(difference.square().sum() / original.square().sum()))
        assert errors[1] < 0.05
        assert errors[1] < errors[0] / 4

    def test_tied_embeddings(self, tmp_path: Path) -> None:
        llava_model(tied=True).save_pretrained(tmp_path / "source")
        compress_checkpoint(tmp_path / "source", tmp_path / "packed", progress=False)
        model = load(tmp_path / "packed")
        embedding = model.get_input_embeddings().weight
        assert model.get_output_embeddings().weight is embedding
        assert torch.equal(embedding, llava_model(tied=True).get_input_embeddings().weight)

    def test_text_model(self, llama_folder: Path, tmp_path: Path) -> None:
        compress_checkpoint(llama_folder, tmp_path / "packed", progress=False)
        model = load(tmp_path / "packed", AutoModelForCausalLM)
        assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear

    def test_base_model_without_head(self, packed_folder: Path) -> None:
        base, whole = load(packed_folder, AutoModel), load(packed_folder)
        weight = base.language_model.layers[0].self_attn.q_proj.weight
        assert torch.equal(weight, whole.get_submodule(Q).weight)

    @pytest.mark.filterwarnings("ignore:.*stay dense")
    @pytest.mark.parametrize("suffix", ["", "codes", "bias"])
    def test_modules_that_initialize_the_linear_layers_inside_them(
        self, suffix: str, tmp_path: Path
    ) -> None:
        """SigLIP's attention does: it must find weights, and hide nothing that was not read."""
        vision = SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=36,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
        SiglipVisionModel(vision).save_pretrained(tmp_path / "source")
        compress_checkpoint(tmp_path / "source", tmp_path / "packed", progress=False)
        state = read_all(tmp_path / "packed")
        config = AutoConfig.from_pretrained(tmp_path / "packed")
        if suffix:
            del state[next(name for name in state if name.endswith(f"q_proj.{suffix}"))]
            with pytest.raises(FormatError, match=rf"q_proj\.{suffix} was not loaded"):
                SiglipVisionModel.from_pretrained(None, config=config, state_dict=state)
            return
        model = SiglipVisionModel.from_pretrained(None, config=config, state_dict=state)
        assert all(parameter.isfinite().all() for parameter in model.parameters())

    def test_compressed_head(self, llama_folder: Path, tmp_path: Path) -> None:
        recipe = [{"match": "lm_head", "compress": True, "bits": 5}]
        compress_checkpoint(llama_folder, tmp_path / "packed", recipe=recipe, progress=False)
        model = load(tmp_path / "packed", AutoModelForCausalLM)
        weight = llama_model().lm_head.weight
        error = (model.lm_head.weight - weight).square().sum() / weight.square().sum()
        assert 0 < error < 0.05


class TestOptions:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "auto"])
    @pytest.mark.parametrize("device_map", [None, "cpu"])
    def test_dtype_and_device_map(
        self, packed_folder: Path, dtype: Any, device_map: str | None
    ) -> None:
        model = load(packed_folder, dtype=dtype, device_map=device_map)
        expected = torch.float32 if dtype == "auto" else dtype
        assert {parameter.dtype for parameter in model.parameters()} == {expected}
        assert logits(model).isfinite().all()

    def test_parameters_are_ordinary(self, packed_folder: Path) -> None:
        model = load(packed_folder)
        assert type(model.get_submodule(Q)) is torch.nn.Linear
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any("codes" in name for name in model.state_dict())
        assert model.half().dtype == torch.float16  # transformers forbids this to quantized models

    def test_saving_gives_a_plain_dense_checkpoint(
        self, packed_folder: Path, tmp_path: Path
    ) -> None:
        model = load(packed_folder)
        model.save_pretrained(tmp_path)
        assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
        again = load(tmp_path)
        assert torch.equal(logits(again), logits(model))

    def test_load_model(self, packed_folder: Path) -> None:
        assert isinstance(load_model(packed_folder), LlavaForConditionalGeneration)

    def test_load_model_reports_missing_weights(self, damaged: Path) -> None:
        names = [name for name in read_all(damaged) if "embed_tokens" in name]
        edit_tensor(damaged, names[0], lambda tensor: None)
        edit_index(damaged, names[0])
        with pytest.raises(FormatError, match="embed_tokens"):
            load_model(damaged)


class TestDamage:
    @pytest.mark.parametrize("suffix", ["codes", "header", "row_scale", "matrix_scale"])
    def test_a_missing_tensor_is_named(self, damaged: Path, suffix: str) -> None:
        edit_tensor(damaged, f"{Q}.{suffix}", lambda tensor: None)
        edit_index(damaged, f"{Q}.{suffix}")
        with pytest.raises(FormatError, match=rf"{Q}\.{suffix} is missing"):
            load(damaged)

    def test_a_tensor_missing_from_a_state_dict_is_named(self, packed_folder: Path) -> None:
        """Without files to check beforehand, what transformers made up must still be noticed."""
        state = read_all(packed_folder)
        del state[f"{Q}.codes"]
        config = AutoConfig.from_pretrained(packed_folder)
        with pytest.raises(FormatError, match=rf"{Q}\.codes was not loaded"):
            LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=state)

    def test_inconsistent_size(self, damaged: Path) -> None:
        edit_tensor(damaged, f"{Q}.codes", lambda tensor: tensor[:-1])
        with pytest.raises(FormatError, match=rf"{Q}\.codes: expected U8"):
            load(damaged)

    def test_inconsistent_type(self, damaged: Path) -> None:
        edit_tensor(damaged, f"{Q}.row_scale", lambda tensor: tensor.float())
        with pytest.raises(FormatError, match=rf"{Q}\.row_scale: expected F16"):
            load(damaged)

    def test_header_that_contradicts_the_configuration(self, damaged: Path) -> None:
        other = "model.language_model.layers.0.self_attn.o_proj"
        header = read_all(damaged)[f"{other}.header"]
        header[8] = 7  # the seed
        edit_tensor(damaged, f"{Q}.header", lambda tensor: header)
        with pytest.raises(FormatError, match=rf"{Q}\.header"):
            load(damaged)

    def test_non_finite_scale(self, damaged: Path) -> None:
        edit_tensor(damaged, f"{Q}.row_scale", lambda tensor: tensor.fill_(float("inf")))
        with pytest.raises(FormatError, match=rf"{Q}.*row_scale"):
            load(damaged)

    @pytest.mark.parametrize(("version", "remedy"), [(4, "upgrade"), (2, "compress.*again")])
    def test_other_version(self, damaged: Path, version: int, remedy: str) -> None:
        edit_quantization(damaged, format_version=version)
        with pytest.raises(FormatError, match=rf"format version {version}.*{remedy}"):
            load(damaged)

    @pytest.mark.parametrize(("version", "remedy"), [(4, "newer"), (2, "compress.*again")])
    def test_other_version_of_one_matrix(self, damaged: Path, version: int, remedy: str) -> None:
        def other(header: torch.Tensor) -> torch.Tensor:
            header[0] = version
            return header

        edit_tensor(damaged, f"{Q}.header", other)
        with pytest.raises(FormatError, match=rf"{Q}.*version {version}.*{remedy}"):
            load(damaged)

    @pytest.mark.parametrize("modules", [{}, None, [1], {Q: {"shape": [4]}}, {Q: 5}])
    def test_damaged_description(self, damaged: Path, modules: Any) -> None:
        edit_quantization(damaged, modules=modules)
        with pytest.raises(FormatError):
            load(damaged)

    def test_description_of_another_model(self, damaged: Path) -> None:
        modules = described_modules(damaged)
        new = Q.replace("layers.0", "layers.7")
        modules[new] = modules.pop(Q)
        edit_quantization(damaged, modules=modules)
        for file in damaged.glob("*.safetensors"):
            tensors = load_file(file)
            renamed = {k.replace(f"{Q}.", f"{new}."): v for k, v in tensors.items()}
            save_file(renamed, file, {"format": "pt"})
        (damaged / "model.safetensors.index.json").write_text(
            (damaged / "model.safetensors.index.json").read_text().replace(f"{Q}.", f"{new}.")
        )
        with pytest.raises(FormatError, match=r"layers\.7.*does not exist"):
            load(damaged)

    def test_compressing_while_loading_is_refused(self, llava_folder: Path) -> None:
        with pytest.raises(FormatError, match="compress_checkpoint"):
            load(llava_folder, quantization_config=LlavaFaConfig())


class TestRegistration:
    def run(self, code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    CHECK = (
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known;"
        "assert 'llava_fa' in known"
    )

    def test_before_transformers(self) -> None:
        """Importing us imports nothing; and the registry looks as if nothing had happened."""
        self.run(
            "import sys, llava_fa\n"
            "assert 'transformers' not in sys.modules\n"
            "import inspect, transformers.quantizers as q\n"
            "assert 'register_quantizer' in inspect.getsource(q)\n"
            "assert 'llava_fa' not in type(q.__spec__.loader).__module__\n" + self.CHECK
        )

    def test_after_transformers(self) -> None:
        self.run(f"import transformers.quantizers; import llava_fa; {self.CHECK}")

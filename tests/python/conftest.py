"""Small random models and checkpoints that the tests of the checkpoint level share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from llava_fa.bit_plan import BitPlan
    from llava_fa.report import CompressionReport

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
"""Linear layers of `llama_model`."""

DATA = [{"input_ids": torch.arange(begin, begin + 30)[None]} for begin in range(4)]
"""Calibration examples for `llama_model`."""

OLD_HUB_NAMES = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def llava_model(*, layers: int = 1, tied: bool = False, seed: int = 0) -> Any:
    """Build a LLaVA of the usual structure with random weights: 20 linear layers at one layer."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=tied,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=63,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config).eval()


def llama_model(seed: int = 0, **overrides: Any) -> Any:
    """Build a text-only model with one layer: 7 linear layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 40,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **overrides})).eval()


def llava_inputs(seed: int = 1) -> dict[str, torch.Tensor]:
    """One image of four visual tokens and a few words."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 60, (1, 6), generator=generator)
    return {
        "input_ids": torch.cat([torch.full((1, 4), 63), words], 1),
        "attention_mask": torch.ones(1, 10, dtype=torch.long),
        "pixel_values": torch.randn(1, 3, 16, 16, generator=generator),
    }


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint in several shards, as today's transformers saves it. Read only."""
    folder = tmp_path_factory.mktemp("llava")
    llava_model().save_pretrained(folder, max_shard_size="20KB")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "none"}\n')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


@pytest.fixture(scope="session")
def old_hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights under the names that checkpoints on the hub have. Read only."""
    folder = tmp_path_factory.mktemp("old_hub")
    model = llava_model()
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlavaForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config))
    state = {}
    for name, tensor in model.state_dict().items():
        old = name
        for new_prefix, old_prefix in OLD_HUB_NAMES:
            if name.startswith(new_prefix):
                old = old_prefix + name.removeprefix(new_prefix)
        state[old] = tensor.clone()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text-only checkpoint in one file. Read only."""
    folder = tmp_path_factory.mktemp("llama")
    llama_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def packed_folder(llava_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``llava_folder``, compressed. Read only."""
    from llava_fa import compress_checkpoint

    folder = tmp_path_factory.mktemp("packed") / "out"
    compress_checkpoint(llava_folder, folder, progress=False, max_shard_size="30KB")
    return folder


@pytest.fixture
def damaged(packed_folder: Path, tmp_path: Path) -> Path:
    """A copy of ``packed_folder`` that a test may damage."""
    return Path(shutil.copytree(packed_folder, tmp_path / "packed"))


def llava_processor() -> Any:
    """Build a processor for ``llava_model``: 16 × 16 images, a word per token, a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = ["<pad>", "<unk>", "</s>", "USER:", "ANSWER:", *(f"w{i}" for i in range(58)), "<image>"]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
    )
    size = {"height": 16, "width": 16}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}USER: {% for p in m['content'] %}"
            "{% if p['type'] == 'image' %}<image> {% else %}{{ p['text'] }} {% endif %}"
            "{% endfor %}{% endfor %}ANSWER:"
        ),
    )


@pytest.fixture(scope="session")
def processor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint with its processor, two images and calibration examples. Read only."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("with_processor")
    llava_model().save_pretrained(folder)
    llava_processor().save_pretrained(folder)
    data = folder.with_name("data")
    data.mkdir(exist_ok=True)
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (20, 12), colour).save(data / name)
    lines: list[dict[str, Any]] = [
        {"image": "red.png", "text": "w1 w2 w3"},
        {"image": "blue.png", "text": "USER: <image> w4 ANSWER: w5"},
        {"text": "w6 w7"},
        {"text": [{"role": "user", "content": [{"type": "text", "text": "w8"}]}]},
    ]
    (data / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, by relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def edit_tensor(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Path:
    """Replace one tensor of a checkpoint in place (None deletes it); return its file."""
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        if name in tensors:
            changed = change(tensors.pop(name))
            if changed is not None:
                tensors[name] = changed.contiguous()
            save_file(tensors, file, {"format": "pt"})
            return file
    raise KeyError(name)


def edit_index(folder: Path, *removed: str) -> None:
    """Take tensors out of the index of a checkpoint of several files."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for name in removed:
        del index["weight_map"][name]
    path.write_text(json.dumps(index))


def described_modules(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` says of every compressed layer."""
    config = json.loads((folder / "config.json").read_text())
    return dict(config["quantization_config"]["modules"])


def edit_quantization(folder: Path, **values: Any) -> None:
    """Replace parts of what ``config.json`` says of the compression."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(values)
    path.write_text(json.dumps(config))


def compress(source: Path, output: Path, *args: Any, **options: Any) -> CompressionReport:
    """Compress without a progress bar."""
    from llava_fa.compress import compress_checkpoint

    return compress_checkpoint(source, output, *args, progress=False, **options)


def plan(source: Path, **options: Any) -> BitPlan:
    """Plan without a progress bar."""
    from llava_fa.planning import plan_checkpoint

    return plan_checkpoint(source, progress=False, **options)


@pytest.fixture
def llama(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "source"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def uneven_inputs(model: Any) -> Any:
    """Make normalization layers give channels of very different sizes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.logspace(-1.5, 1, parameter.numel()))
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of two layers whose inputs differ in size, so that calibration changes its bytes."""
    model = uneven_inputs(llama_model(num_hidden_layers=2))
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"

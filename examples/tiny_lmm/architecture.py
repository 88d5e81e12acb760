"""The model and processor: CLIP vision tower, MLP projector, Llama model, word tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .questions import VOCABULARY_WORDS
from .scenes import IMAGE_SIZE

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
"""Special tokens in the order of their ids."""

WORD_ID = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *VOCABULARY_WORDS))}
"""Token id of every word."""

_SPECIAL_IDS: dict[str, Any] = {
    f"{name}_token_id": WORD_ID[f"<{name}>"] for name in ("pad", "bos", "eos")
}

PATCH_SIZE = 8
PATCHES_PER_SIDE = IMAGE_SIZE // PATCH_SIZE
IMAGE_TOKENS = PATCHES_PER_SIDE**2
"""Visual tokens per image, the class token dropped."""


@dataclass(frozen=True)
class Size:
    """Widths and depths of the two towers."""

    vision_hidden: int = 192
    vision_layers: int = 4
    vision_heads: int = 6
    vision_intermediate: int = 768
    text_hidden: int = 256
    text_layers: int = 4
    text_heads: int = 4
    text_intermediate: int = 704


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer: words are separated by spaces, ``<bos>`` is put in front."""
    tokenizer = Tokenizer(models.WordLevel(WORD_ID, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", WORD_ID["<bos>"])]
    )
    make: Any = PreTrainedTokenizerFast
    tokenizer_fast: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer_fast


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
"""A conversation of one turn becomes ``<image> question``; the answer follows directly."""


def build_processor() -> LlavaProcessor:
    """Processor: images of 96 x 96 pixels become 144 ``<image>`` placeholders."""
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    make: Any = LlavaProcessor
    processor: LlavaProcessor = make(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def build_config(size: Size | None = None) -> LlavaConfig:
    """Configuration of the model (default: the shipped size)."""
    size = size or Size()
    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=size.vision_intermediate,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=size.vision_hidden,
    )
    text = LlamaConfig(
        vocab_size=len(WORD_ID),
        hidden_size=size.text_hidden,
        intermediate_size=size.text_intermediate,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
        num_key_value_heads=size.text_heads,
        max_position_embeddings=512,
        initializer_range=0.06,
        tie_word_embeddings=False,
        **_SPECIAL_IDS,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORD_ID["<image>"],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **_SPECIAL_IDS,
    )


def _frequencies(hidden: int) -> torch.Tensor:
    """Radians per patch of the position code: hidden / 4 of them for each axis."""
    return torch.as_tensor(2.0 * 20.0 ** (-torch.arange(hidden // 4) / (hidden // 4)))


def _place_code(hidden: int) -> torch.Tensor:
    """Sines and cosines of row and column, (1 + IMAGE_TOKENS, hidden), the class token's row 0."""
    places = torch.arange(PATCHES_PER_SIDE)
    parts = []
    for axis in torch.meshgrid(places, places, indexing="ij"):
        angles = axis.flatten()[:, None] * _frequencies(hidden)
        parts += [angles.sin(), angles.cos()]
    return torch.cat([torch.zeros(1, hidden), torch.cat(parts, dim=1)])


def _look_at(attention: Any, head: int, offsets: tuple[float, float], gain: float = 1.6) -> None:
    """Let an attention head start by looking `offsets` (rows, columns) of patches away.

    Queries pick sines and cosines of the position code; keys pick the same, turned by the offset,
    so that their product is a sum of cosines that peaks at the wanted neighbour.
    """
    hidden, width = attention.embed_dim, attention.head_dim
    count = hidden // 4
    pairs = width // 4  # frequencies per axis in this head
    query, key = torch.zeros(width, hidden), torch.zeros(width, hidden)
    row = 0
    for axis, offset in enumerate(offsets):
        for index in torch.linspace(0, 0.65 * count, pairs).long().tolist():
            sine = 2 * axis * count + index
            cosine = sine + count
            turn = float(_frequencies(hidden)[index]) * offset
            query[row, sine] = query[row + 1, cosine] = gain
            key[row, sine] = key[row + 1, cosine] = gain * math.cos(turn)
            key[row, cosine], key[row + 1, sine] = -gain * math.sin(turn), gain * math.sin(turn)
            row += 2
    span = slice(head * width, (head + 1) * width)
    attention.q_proj.weight[span] = query
    attention.k_proj.weight[span] = key


def _patch_filters(hidden: int) -> torch.Tensor:
    """Patch embedding that keeps edges audible beside colours, (hidden, 3, 8, 8).

    A randomly turned cosine transform of each channel in which the mean counts an eighth of what
    the other coefficients count.
    """
    places = torch.arange(PATCH_SIZE)
    cosines = torch.cos(math.pi / PATCH_SIZE * (places[None, :] + 0.5) * places[:, None])
    cosines = functional.normalize(cosines, dim=1)
    basis = torch.einsum("ax,by->abxy", cosines, cosines).reshape(-1, PATCH_SIZE, PATCH_SIZE)
    gain = torch.full((len(basis),), 1.2)
    gain[0] = 0.15
    filters = torch.zeros(3, len(basis), 3, PATCH_SIZE, PATCH_SIZE)
    for channel in range(3):
        filters[channel, :, channel] = gain[:, None, None] * basis
    turn = torch.linalg.qr(torch.randn(3 * len(basis), max(hidden, 3 * len(basis))).T)[0]
    return torch.einsum("hf,fcxy->hcxy", turn[:hidden], filters.flatten(0, 1))


def build_model(size: Size | None = None) -> LlavaForConditionalGeneration:
    """A freshly initialized model.

    Three departures from CLIP's initial weights let a vision tower learn from ten thousand images
    rather than millions: patch embeddings start as a cosine transform with its mean turned down,
    position embeddings as sines and cosines as large as the patches' own embeddings, and four
    heads of the first layers start by looking at the four neighbours, as a convolution would.
    Training is free to change all of them.
    """
    model = LlavaForConditionalGeneration(build_config(size))
    embeddings = model.model.vision_tower.embeddings
    layers = model.model.vision_tower.encoder.layers
    with torch.no_grad():
        embeddings.patch_embedding.weight.copy_(_patch_filters(embeddings.embed_dim))
        embeddings.position_embedding.weight.copy_(_place_code(embeddings.embed_dim))
        for layer in list(layers)[:3]:
            for head, offsets in enumerate(((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0))):
                if head < layer.self_attn.num_heads:
                    _look_at(layer.self_attn, head, offsets)
        # words and image tokens start larger than what a layer adds to them
        model.model.language_model.embed_tokens.weight.normal_(std=0.7)
        model.model.multi_modal_projector.linear_2.weight.normal_(std=0.15)
        for layer in model.model.language_model.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight.mul_(0.35)
    for name, index in _SPECIAL_IDS.items():
        setattr(model.generation_config, name, index)
    return model

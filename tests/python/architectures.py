"""The architectures that the library is proven on: a small random model of each.

Sizes are the smallest that keep every part of the architecture: several tiles of an image where
there can be several, a merger of patches where there is one, sliding and full attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from architecture_inputs import (
    IMAGE,
    SOUND,
    Inputs,
    gemma_prompt,
    idefics_prompt,
    mllama_prompt,
    one_image_prompt,
    phi4_prompt,
    qwen_vl_prompt,
    sized_prompt,
    text_prompt,
    tiled_prompt,
)
from conftest import llama_model, llava_inputs, llava_model

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Of every language model."""

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
}
"""Of most vision towers."""

MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
"""Positions in time, height and width, for heads of eight channels."""


@dataclass(frozen=True)
class Architecture:
    """How to build a small model of one architecture, one example for it, and who loads it."""

    name: str
    model: Callable[[], Any]
    inputs: Callable[[], Inputs]
    auto: Any = AutoModelForImageTextToText


def randomized(model: Any, seed: int = 0) -> Any:
    """Draw every parameter anew, of a size that lets every input matter.

    transformers leaves biases, gates and routers at zero, which would hide mistakes: with its gates
    at zero Mllama does not look at the image.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                fan_in = parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]
                parameter.copy_(noise / fan_in**0.5)
    return model.eval()


def build(class_name: str, config: Any) -> Any:
    """Build a randomized model of a class of transformers."""
    import transformers

    torch.manual_seed(0)  # for buffers, if any are random
    return randomized(getattr(transformers, class_name)(config))


def clip_vision() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**VISION, patch_size=8, projection_dim=16)


def siglip_vision(patch_size: int) -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(**VISION, patch_size=patch_size, vision_use_head=False)


def pixtral_vision() -> Any:
    from transformers import PixtralVisionConfig

    # Positions in two dimensions need heads of a multiple of four channels.
    return PixtralVisionConfig(**{**VISION, "hidden_size": 32}, patch_size=4)


def llava() -> Any:
    return randomized(llava_model())


def llava_next() -> Any:
    from transformers import LlamaConfig, LlavaNextConfig

    config = LlavaNextConfig(
        vision_config=clip_vision(),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[16, 32]],
    )
    return build("LlavaNextForConditionalGeneration", config)


def llava_onevision() -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config

    config = LlavaOnevisionConfig(
        vision_config=siglip_vision(8),
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=61,
        image_grid_pinpoints=[[16, 32]],
    )
    return build("LlavaOnevisionForConditionalGeneration", config)


QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}


def qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig

    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": dict(MROPE)},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "num_heads": 4,
            "patch_size": 4,
        },
        **QWEN_TOKENS,
    )
    return build("Qwen2VLForConditionalGeneration", config)


def qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig

    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": dict(MROPE)},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": 4,
            "window_size": 8,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        **QWEN_TOKENS,
    )
    return build("Qwen2_5_VLForConditionalGeneration", config)


QWEN3_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}


def qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig

    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "rope_parameters": {**MROPE, "mrope_interleaved": True},
        },
        vision_config=QWEN3_VISION,
        **QWEN_TOKENS,
    )
    return build("Qwen3VLForConditionalGeneration", config)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def qwen3_vl_moe() -> Any:
    from transformers import Qwen3VLMoeConfig

    rope = {**MROPE, "mrope_interleaved": True}
    config = Qwen3VLMoeConfig(
        text_config={**TEXT, **EXPERTS, "head_dim": 8, "rope_parameters": rope},
        vision_config=QWEN3_VISION,
        **QWEN_TOKENS,
    )
    return build("Qwen3VLMoeForConditionalGeneration", config)


def internvl() -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION, patch_size=4),
        text_config=Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return build("InternVLForConditionalGeneration", config)


def gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3TextConfig

    text = Gemma3TextConfig(
        **TEXT,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=siglip_vision(4),
        mm_tokens_per_image=4,
        boi_token_index=61,
        eoi_token_index=62,
        image_token_index=IMAGE,
    )
    return build("Gemma3ForConditionalGeneration", config)


def paligemma() -> Any:
    from transformers import GemmaConfig, PaliGemmaConfig

    config = PaliGemmaConfig(
        vision_config=siglip_vision(8),
        text_config=GemmaConfig(**TEXT, head_dim=8),
        image_token_index=IMAGE,
        vocab_size=64,
        projection_dim=32,
        hidden_size=32,
    )
    return build("PaliGemmaForConditionalGeneration", config)


def idefics3() -> Any:
    from transformers import Idefics3Config

    return build("Idefics3ForConditionalGeneration", idefics_config(Idefics3Config))


def smolvlm() -> Any:
    from transformers import SmolVLMConfig

    return build("SmolVLMForConditionalGeneration", idefics_config(SmolVLMConfig))


def idefics_config(config_class: Any) -> Any:
    from transformers import LlamaConfig

    return config_class(
        vision_config={**VISION, "patch_size": 4},
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
    )


def mllama() -> Any:
    from transformers import MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    vision = MllamaVisionConfig(
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=16,
        patch_size=8,
        max_num_tiles=2,
        intermediate_layers_indices=[0],
        vision_output_dim=48,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )
    text = MllamaTextConfig(**TEXT, cross_attention_layers=[1])
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return build("MllamaForConditionalGeneration", config)


def pixtral() -> Any:
    from transformers import LlavaConfig, MistralConfig

    config = LlavaConfig(
        vision_config=pixtral_vision(),
        text_config=MistralConfig(**TEXT, head_dim=8),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return build("LlavaForConditionalGeneration", config)


def mistral3() -> Any:
    from transformers import Mistral3Config, MistralConfig

    config = Mistral3Config(
        vision_config=pixtral_vision(),
        text_config=MistralConfig(**TEXT, head_dim=8),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return build("Mistral3ForConditionalGeneration", config)


def phi4_multimodal() -> Any:
    from transformers import Phi4MultimodalConfig

    config = Phi4MultimodalConfig(
        **TEXT,
        vision_config={**VISION, "patch_size": 4, "crop_size": 16, "image_token_id": IMAGE},
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 2,
            "num_attention_heads": 4,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "input_size": 16,
            "nemo_conv_channels": 16,
            "bias_max_distance": 20,
            "audio_token_id": SOUND,
        },
    )
    return build("Phi4MultimodalForCausalLM", config)


def llama() -> Any:
    return randomized(llama_model(vocab_size=64))


def qwen3() -> Any:
    from transformers import Qwen3Config

    return build("Qwen3ForCausalLM", Qwen3Config(**TEXT, head_dim=8, tie_word_embeddings=True))


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig

    return build("Qwen3MoeForCausalLM", Qwen3MoeConfig(**TEXT, **EXPERTS, head_dim=8))


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture("LLaVA-1.5", llava, llava_inputs),
        Architecture("LLaVA-NeXT", llava_next, tiled_prompt),
        Architecture("LLaVA-OneVision", llava_onevision, tiled_prompt),
        Architecture("Qwen2-VL", qwen2_vl, qwen_vl_prompt),
        Architecture("Qwen2.5-VL", qwen2_5_vl, qwen_vl_prompt),
        Architecture("Qwen3-VL", qwen3_vl, qwen_vl_prompt),
        Architecture("InternVL", internvl, one_image_prompt),
        Architecture("Gemma 3", gemma3, gemma_prompt),
        Architecture("PaliGemma", paligemma, gemma_prompt),
        Architecture("Idefics3", idefics3, idefics_prompt),
        Architecture("SmolVLM", smolvlm, idefics_prompt),
        Architecture("Mllama", mllama, mllama_prompt),
        Architecture("Pixtral", pixtral, lambda: sized_prompt(8)),
        Architecture("Mistral 3", mistral3, lambda: sized_prompt(2)),
        Architecture("Phi-4 multimodal", phi4_multimodal, phi4_prompt, AutoModelForCausalLM),
        Architecture("Qwen3-VL-MoE", qwen3_vl_moe, qwen_vl_prompt),
        Architecture("Qwen3-MoE", qwen3_moe, text_prompt, AutoModelForCausalLM),
        Architecture("Llama", llama, text_prompt, AutoModelForCausalLM),
        Architecture("Qwen3", qwen3, text_prompt, AutoModelForCausalLM),
    )
}
"""Every architecture by the name it is known under, multimodal ones first."""

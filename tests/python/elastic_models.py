"""Small random models with room for a pyramid of visual tokens, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch

from architectures import TEXT, build
from llava_fa.fmvr import attach_fmvr

IMAGE = 60
SIDE = 12
PINPOINTS = [[24, 48], [48, 24], [48, 48]]
"""Of LLaVA-NeXT: tiles of 24 × 24 pixels, 6 × 6 tokens."""
WIDE, TALL = [20, 60], [60, 20]
"""Sizes of images whose padding LLaVA-NeXT cuts off."""


def clip(size: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=4,
        projection_dim=16,
    )


def llava(**settings: Any) -> Any:
    """Images of 48 × 48 pixels, a grid of 12 × 12 tokens."""
    from transformers import LlamaConfig, LlavaConfig

    config = LlavaConfig(
        vision_config=clip(4 * SIDE),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_seq_length=SIDE**2,
        **settings,
    )
    return build("LlavaForConditionalGeneration", config)


def llava_next() -> Any:
    from transformers import LlamaConfig, LlavaNextConfig

    config = LlavaNextConfig(
        vision_config=clip(24),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return build("LlavaNextForConditionalGeneration", config)


def elastic_llava(variant: str = "both", scales: tuple[int, ...] | None = None) -> Any:
    """As ``llava``, with a pyramid whose weights matter."""
    model = attach_fmvr(llava(), scales, variant=variant)
    return with_weights(model)


def with_weights(model: Any) -> Any:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.fmvr.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def rows(*counts: list[int], texts: tuple[int, ...] = (7, 7, 7, 7)) -> dict[str, torch.Tensor]:
    """Prompts, padded on the left: for each a word, its images' placeholders, and words."""
    prompts = []
    for number, images in enumerate(counts):
        words = torch.randint(
            3, 50, (texts[number],), generator=torch.Generator().manual_seed(number)
        )
        parts = [words[:1], *(torch.tensor([*[IMAGE] * count, 59]) for count in images), words[1:]]
        prompts.append(torch.cat(parts))
    length = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def next_inputs(count: int) -> dict[str, Any]:
    """A wide image: the whole and two tiles."""
    return {
        **rows([count]),
        "pixel_values": pixels(1, 3, 3, 24, 24),
        "image_sizes": torch.tensor([WIDE]),
    }


def qwen_inputs(*grids: tuple[int, int], placeholders: list[int]) -> dict[str, Any]:
    """One prompt with still images of these grids of patches, merged by fours."""
    text = rows(placeholders)
    patches = sum(height * width for height, width in grids)
    return {
        **text,
        "pixel_values": pixels(patches, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, *grid] for grid in grids]),
        "mm_token_type_ids": (text["input_ids"] == IMAGE).long(),
    }

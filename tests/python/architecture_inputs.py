"""Inputs for the small models of ``architectures.py``: words, images and sound, always the same."""

from __future__ import annotations

import torch

IMAGE = 60
"""The image token of every model here; words are below, other special tokens above."""

SOUND = 61
"""The token of a stretch of sound, for the one that listens."""

Inputs = dict[str, torch.Tensor]


def words(count: int) -> torch.Tensor:
    """Return text tokens, the same every time."""
    return torch.randint(3, 50, (1, count), generator=torch.Generator().manual_seed(2))


def noise(*shape: int) -> torch.Tensor:
    """Return pixels, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def prompt(image_tokens: int, **rest: torch.Tensor) -> Inputs:
    """Return a word, an image of so many tokens and more words, beside what else is given."""
    text = words(7)
    ids = torch.cat([text[:, :1], torch.full((1, image_tokens), IMAGE), text[:, 1:]], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **rest}


def image_mask(inputs: Inputs, name: str) -> Inputs:
    """Add a mask of the image tokens under the name that the architecture wants."""
    return {**inputs, name: (inputs["input_ids"] == IMAGE).long()}


def text_prompt() -> Inputs:
    return prompt(0)


def tiled_prompt() -> Inputs:
    """The whole image and two tiles of four tokens, with a line break after each of two rows."""
    return prompt(14, pixel_values=noise(1, 3, 3, 16, 16), image_sizes=torch.tensor([[16, 32]]))


def qwen_vl_prompt() -> Inputs:
    """4 × 4 patches of two frames, merged by fours."""
    inputs = prompt(
        4, pixel_values=noise(16, 3 * 2 * 4 * 4), image_grid_thw=torch.tensor([[1, 4, 4]])
    )
    return image_mask(inputs, "mm_token_type_ids")


def one_image_prompt() -> Inputs:
    """One image of four tokens."""
    return prompt(4, pixel_values=noise(1, 3, 16, 16))


def gemma_prompt() -> Inputs:
    """One image of four tokens, which see each other; the mask says which they are."""
    return image_mask(one_image_prompt(), "token_type_ids")


def idefics_prompt() -> Inputs:
    """Two tiles of four tokens."""
    return prompt(8, pixel_values=noise(1, 2, 3, 16, 16))


def mllama_prompt() -> Inputs:
    """One token for an image of two tiles, which the words see by cross attention."""
    inputs = prompt(1, pixel_values=noise(1, 1, 2, 3, 16, 16))
    length = inputs["input_ids"].shape[1]
    sees = torch.ones(1, length, 1, 2, dtype=torch.long)
    sees[:, 0] = 0  # the word before the image
    return {
        **inputs,
        "aspect_ratio_ids": torch.tensor([[2]]),
        "aspect_ratio_mask": torch.ones(1, 1, 2, dtype=torch.long),
        "cross_attention_mask": sees,
    }


def sized_prompt(image_tokens: int) -> Inputs:
    """An image lower than it is wide, whose size the model must know."""
    return prompt(
        image_tokens, pixel_values=noise(1, 3, 8, 16), image_sizes=torch.tensor([[8, 16]])
    )


def phi4_prompt() -> Inputs:
    """Look and listen: four tokens of sound after the image.

    The image is one tile and the whole, each two rows of three tokens, with one between.
    """
    inputs = prompt(13)
    sound = torch.full((1, 4), SOUND)
    ids = torch.cat([inputs["input_ids"][:, :16], sound, inputs["input_ids"][:, 16:]], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_pixel_values": noise(1, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]]),
        "image_attention_mask": torch.ones(1, 2, 4, 4),
        "audio_input_features": noise(1, 32, 16),
        "audio_embed_sizes": torch.tensor([4]),
    }

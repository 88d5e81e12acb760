"""How fast does a text model answer: time to the first token, and tokens per second after it.

Needs torch and transformers only, so that other quantizers' models are timed in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.random_model import VOCABULARY

PROMPT, NEW_TOKENS = 64, 16


def replace_linear(layers: Any, replacement: Callable[[torch.nn.Linear], torch.nn.Module]) -> None:
    """Replace every linear layer in a decoder's layers."""
    for module in list(layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, replacement(child))


def generation(model: Any) -> dict[str, float]:
    """Seconds to the first token, and tokens per second after it."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, VOCABULARY, (1, PROMPT), generator=generator)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    seconds = []
    for count in (1, 1, 1 + NEW_TOKENS):  # the first call prepares
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(prompt, min_new_tokens=count, max_new_tokens=count, **options)
        seconds.append(time.perf_counter() - start)
    return {
        "first token s": seconds[1],
        "tokens per s": NEW_TOKENS / (seconds[2] - seconds[1]),
    }

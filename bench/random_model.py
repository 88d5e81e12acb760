"""A text model with random weights, large enough for times and memory to mean something."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 4096


def random_text_model(small: bool) -> Any:
    """Return a Llama of 0.4 billion float32 weights, or of far fewer for smoke runs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    if not small:
        size = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8}
    torch.manual_seed(0)
    config = LlamaConfig(num_attention_heads=16, vocab_size=VOCABULARY, **size)
    return LlamaForCausalLM(config).eval()

"""Answers a question about an image with a compressed or dense checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from .capture import load_processor, prompt_text
from .dense_model import on_device_of
from .errors import CheckpointError
from .fmvr import elastic_processor
from .hf import Runtime
from .loading import load_model


def generate_answer(
    folder: str | os.PathLike[str],
    prompt: str,
    image: str | os.PathLike[str] | None = None,
    *,
    max_new_tokens: int = 64,
    runtime: Runtime | None = None,
    stream: bool = False,
    **budget: Any,
) -> str:
    """Load a checkpoint and return the model's answer, decoded greedily.

    Parameters
    ----------
    folder
        Checkpoint folder.
    prompt
        The question; the chat template and the image token are added if the processor has them.
    image
        Image file, or None for a question without an image.
    max_new_tokens
        Longest answer.
    runtime
        ``"dense"`` decodes a compressed checkpoint at loading; ``"packed"`` keeps it packed. None:
        what :func:`llava_fa.hf.default_runtime` says.
    stream
        Print the answer on standard output word by word, as it comes.
    **budget
        For a model with FMVR: ``visual_tokens``, ``max_prefill_tflops`` or ``max_kv_bytes``; see
        :func:`llava_fa.fmvr.elastic_processor`.
    """
    model = load_model(folder, dtype="auto", runtime=runtime)
    processor = load_processor(folder)
    return answer(
        model, processor, prompt, image, max_new_tokens=max_new_tokens, stream=stream, **budget
    )


def answer(
    model: Any,
    processor: Any,
    prompt: str,
    image: str | os.PathLike[str] | None = None,
    *,
    max_new_tokens: int = 64,
    stream: bool = False,
    **budget: Any,
) -> str:
    """As :func:`generate_answer`, with what is already loaded."""
    if budget:
        processor = elastic_processor(processor, model.config)
    images = [_open_image(Path(image))] if image is not None else []
    text = prompt_text(processor, prompt, len(images))
    arguments: dict[str, Any] = {"images": images} if images else {}
    inputs = processor(text=text, return_tensors="pt", **arguments, **budget)
    inputs = on_device_of(model, inputs)
    tokenizer = getattr(processor, "tokenizer", processor)
    printer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with torch.inference_mode():
        tokens = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=printer if stream else None,
        )
    new = tokens[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def _open_image(path: Path) -> Any:
    from PIL import Image

    if not path.is_file():
        raise CheckpointError(f"{path}: no such image")
    with Image.open(path) as image:
        return image.convert("RGB")

"""Calibration examples: from a file or an iterable to what the model is called with."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError
from .writer import hash_file, tensor_bytes


class CalibrationData:
    """A bounded number of examples, from a JSON-lines file or from any iterable of model inputs.

    Parameters
    ----------
    data
        Path of a file with one object per line, ``{"image": PATH, "text": TEXT}``: the path (or
        list of paths) is relative to the file, the image may be left out, and the text may be a
        prompt or a list of chat messages. Or an iterable of keyword arguments of the model's
        ``forward``.
    limit
        At most so many examples are used.
    """

    def __init__(
        self, data: str | os.PathLike[str] | Iterable[Mapping[str, Any]], limit: int
    ) -> None:
        if limit < 1:
            raise ValueError(f"calibration_samples must be at least 1, got {limit}")
        self._folder = Path()
        self._lines: list[dict[str, Any]] = []
        self._inputs: list[Mapping[str, Any]] = []
        if isinstance(data, (str, os.PathLike)):
            self._folder = Path(data).parent
            self._lines = _read_lines(Path(data), limit)
        else:
            self._inputs = list(itertools.islice(data, limit))
        if not self._lines and not self._inputs:
            raise CheckpointError(f"calibration data {data!r}: no examples in it")

    def __len__(self) -> int:
        return len(self._lines) or len(self._inputs)

    def fingerprint(self) -> str:
        """Return a hash of everything in the examples that the model will see."""
        digest = hashlib.sha256()
        for line in self._lines:
            digest.update(json.dumps(line, sort_keys=True).encode())
            for image in self._image_paths(line):
                digest.update(hash_file(image).encode())
        for inputs in self._inputs:
            for key in sorted(inputs):
                digest.update(key.encode())
                value = inputs[key]
                tensor = isinstance(value, torch.Tensor)
                digest.update(tensor_bytes(value.cpu()) if tensor else repr(value).encode())
        return digest.hexdigest()

    def model_inputs(self, folder: Path) -> Iterator[Mapping[str, Any]]:
        """Yield the model's inputs; JSON lines go through the processor found in ``folder``."""
        if not self._lines:
            yield from self._inputs
            return
        processor = load_processor(folder)
        for line in self._lines:
            yield _processed(processor, line["text"], self._image_paths(line))

    def _image_paths(self, line: Mapping[str, Any]) -> list[Path]:
        images = line.get("image") or []
        names = [images] if isinstance(images, str) else images
        return [self._folder / name for name in names]


def load_processor(folder: str | os.PathLike[str]) -> Any:
    """Load a checkpoint's own processor (or tokenizer, if it is a text model)."""
    import transformers

    auto: Any = transformers.AutoProcessor
    try:
        return auto.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: no processor or tokenizer that transformers can load ({error}); copy the "
            "tokenizer and preprocessor files of the original checkpoint there"
        ) from error


def _read_lines(path: Path, limit: int) -> list[dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such calibration file")
    lines: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            if len(lines) == limit:
                break
            lines.append(_checked_line(text, path, number))
    return lines


def _checked_line(text: str, path: Path, number: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}, line {number}: not valid JSON ({error})") from None
    if not isinstance(line, dict) or not isinstance(line.get("text"), (str, list)):
        raise CheckpointError(
            f"{path}, line {number}: expected an object with 'text' (a prompt or a list of chat "
            "messages) and optionally 'image'"
        )
    images = line.get("image") or []
    for image in [images] if isinstance(images, str) else images:
        if not (path.parent / image).is_file():
            raise CheckpointError(f"{path}, line {number}: no such image {path.parent / image}")
    return line


def _processed(processor: Any, text: str | list[Any], paths: Sequence[Path]) -> Mapping[str, Any]:
    """Turn one example into the model's inputs, as the model was trained to see it."""
    from PIL import Image

    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    prompt = prompt_text(processor, text, len(images))
    arguments: dict[str, Any] = {"images": images} if images else {}
    inputs: Mapping[str, Any] = processor(text=prompt, return_tensors="pt", **arguments)
    return inputs


def prompt_text(processor: Any, text: str | list[Any], images: int) -> str:
    """Return the prompt with the chat template and an image token per image.

    A text that already holds the processor's image token is taken as a complete prompt.
    """
    token = getattr(processor, "image_token", "<image>")
    if isinstance(text, str):
        if images == 0 or token in text:
            return text
        if not getattr(processor, "chat_template", None):
            return f"{token}\n" * images + text
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        text = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(text, add_generation_prompt=True))

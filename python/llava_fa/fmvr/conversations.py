r"""Training examples in LLaVA's conversation format: JSON, with images in a folder.

The file is a list, or has one object per line, of

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                         {"from": "gpt", "value": "A cat."}, ...]}

The image (or list of images) is relative to the folder and may be left out; ``<image>`` stands in
the text as often as there are images. What the model answers is learned, nothing else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import CheckpointError
from .layouts import layout_of
from .matryoshka import IGNORED
from .placeholders import PADDING

_MARK = "<image>"
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
Example = dict[str, Any]


class Conversations(Dataset[Example]):
    """A data set of model inputs with labels, at full scale; images are read when asked for.

    Parameters
    ----------
    file
        See the head of this module.
    images
        Folder that images are relative to.
    processor
        Of the model; its chat template lays the turns out, or without one LLaVA-1.5's
        ``USER: ... ASSISTANT: ...``. The end token is added and learned if the template leaves it
        out.
    config
        Of the model with FMVR.

    Raises
    ------
    CheckpointError
        The file cannot be read, an example is not as described, or an image does not exist.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        images: str | os.PathLike[str],
        processor: Any,
        config: Any,
    ) -> None:
        self._folder = Path(images)
        self._processor, self._config = processor, config
        self._examples = _read(Path(file))
        for number, example in enumerate(self._examples):
            _check(example, self._folder, f"{file}, example {number}")
        if not self._examples:
            raise CheckpointError(f"{file}: no examples in it")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Return ``input_ids`` and ``labels``, (length,), and what describes the images."""
        example = self._examples[index]
        paths = _image_paths(example, self._folder)
        found = self._image_inputs(paths) if paths else {}
        text, spans = rendered(self._processor, messages_of(example["conversations"]))
        tokens = self._processor.tokenizer(text, return_offsets_mapping=True)
        counts = layout_of(self._config).full(found) if paths else []
        ids, labels = _expanded(
            tokens["input_ids"],
            [_learned(start, spans) for start, _ in tokens["offset_mapping"]],
            self._config.image_token_id,
            counts,
        )
        if "mm_token_type_ids" in self._processor.model_input_names:
            found["mm_token_type_ids"] = (ids == self._config.image_token_id).long()
        return {**found, "input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}

    def _image_inputs(self, paths: Sequence[Path]) -> Example:
        from PIL import Image

        pictures = []
        for path in paths:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        return dict(self._processor.image_processor(images=pictures, return_tensors="pt"))


def messages_of(turns: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return turns of the format as chat messages of text and images."""
    messages = []
    for turn in turns:
        parts = [part.strip("\n") for part in turn["value"].split(_MARK)]
        content: list[dict[str, str]] = []
        for number, part in enumerate(parts):
            content += [{"type": "image"}] if number else []
            content += [{"type": "text", "text": part}] if part else []
        messages.append({"role": _ROLES[turn["from"]], "content": content})
    return messages


def rendered(processor: Any, messages: list[dict[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and where in it the answers are.

    Raises
    ------
    CheckpointError
        The chat template does not lay a conversation out as a continuation of its beginning, so
        answers cannot be found.
    """
    whole = _text(processor, messages, answering=False)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _text(processor, messages[:number], answering=True)
        upto = _text(processor, messages[: number + 1], answering=False)
        if not (whole.startswith(upto) and upto.startswith(before)):
            raise CheckpointError(
                "the processor's chat template changes earlier turns when later ones follow; "
                "answers cannot be told from questions in its text"
            )
        spans.append((len(before), len(upto)))
    end = processor.tokenizer.eos_token
    if end and not whole.rstrip().endswith(end):
        whole += end
        spans[-1] = (spans[-1][0], len(whole))
    return whole, spans


def collated(examples: Sequence[Example], pad_token: int) -> dict[str, Tensor]:
    """Return a batch: rows padded on the right, images of all rows one after the other."""
    length = max(len(example["input_ids"]) for example in examples)
    fills = {"input_ids": pad_token, **PADDING}
    batch = {}
    for name in dict.fromkeys(key for example in examples for key in example):
        values = [example[name] for example in examples if name in example]
        if name in fills:
            rows = torch.full((len(values), length), fills[name])
            for row, value in zip(rows, values, strict=True):
                row[: len(value)] = value
            batch[name] = rows
        else:
            batch[name] = _joined(values)
    return batch


def _joined(values: Sequence[Tensor]) -> Tensor:
    """Join what images are; those of LLaVA-NeXT are padded to the same number of tiles."""
    if values[0].ndim == 5:
        tiles = max(value.shape[1] for value in values)
        pads = [(0, 0) * 3 + (0, tiles - value.shape[1]) for value in values]
        values = [
            torch.nn.functional.pad(value, pad) for value, pad in zip(values, pads, strict=True)
        ]
    return torch.cat(list(values))


def _text(processor: Any, messages: Sequence[dict[str, Any]], *, answering: bool) -> str:
    if getattr(processor, "chat_template", None):
        return str(
            processor.apply_chat_template(
                list(messages), add_generation_prompt=answering, tokenize=False
            )
        )
    token = getattr(processor, "image_token", _MARK)
    text = ""
    for message in messages:
        words = "".join(
            f"{token}\n" if part["type"] == "image" else part["text"] for part in message["content"]
        )
        name = {"user": "USER: ", "assistant": "ASSISTANT: ", "system": ""}[message["role"]]
        text += f"{name}{words} "
    return text + ("ASSISTANT:" if answering else "")


def _learned(start: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(begin <= start < end for begin, end in spans)


def _expanded(
    tokens: Sequence[int], learned: Sequence[bool], image_token: int, counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Repeat every image's placeholder as often as full scale needs; label what is learned."""
    ids: list[int] = []
    labels: list[int] = []
    left = iter(counts)
    for token, wanted in zip(tokens, learned, strict=True):
        times = next(left) if token == image_token else 1
        ids += [token] * times
        labels += [token if wanted and token != image_token else IGNORED] * times
    return torch.tensor(ids), torch.tensor(labels)


def _read(path: Path) -> list[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of conversations")
    text = path.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise CheckpointError(
            f"{path}: neither a JSON list nor an object per line ({error})"
        ) from None


def _check(example: Any, folder: Path, place: str) -> None:
    turns = example.get("conversations") if isinstance(example, dict) else None
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        raise CheckpointError(
            f"{place}: expected 'conversations', a list of {{'from': 'human' or 'gpt', 'value': "
            "text}}"
        )
    if not any(turn["from"] == "gpt" for turn in turns):
        raise CheckpointError(f"{place}: no turn from 'gpt', so there is nothing to learn")
    paths = _image_paths(example, folder)
    marks = sum(len(re.findall(_MARK, turn["value"])) for turn in turns)
    if marks != len(paths):
        raise CheckpointError(f"{place}: {marks} times {_MARK} in the text, {len(paths)} images")
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{place}: no such image {path}")


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, dict) and turn.get("from") in _ROLES and isinstance(turn.get("value"), str)
    )


def _image_paths(example: Mapping[str, Any], folder: Path) -> list[Path]:
    images = example.get("image") or []
    return [folder / name for name in ([images] if isinstance(images, str) else images)]

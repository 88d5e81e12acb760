"""Answer distributions of a LLaVA-like model: all questions of an image share one forward pass.

The questions of an image follow it in one sequence, isolated from each other by a four-dimensional
attention mask and by position ids that start anew for each question.  In exact arithmetic this is
the same computation as asking each question alone (`packed=False` does that), for a fraction of
the cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .benchmark import VisualQuestion


def _tokenize(processor: Any, questions: Sequence[VisualQuestion]) -> dict[str, torch.Tensor]:
    inputs = processor(
        images=[question.pil_image() for question in questions],
        text=[question.prompt for question in questions],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return dict(inputs)


def _plain(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities after each padded prompt on its own, (questions, vocabulary)."""
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=inputs["input_ids"].to(model.device),
        pixel_values=inputs["pixel_values"].to(model.device, model.dtype),
        attention_mask=mask.to(model.device),
        position_ids=positions.to(model.device),
        logits_to_keep=1,
        use_cache=False,
    ).logits[:, -1]
    return torch.log_softmax(logits.float().double(), dim=-1)


def pack(
    sequences: Sequence[Sequence[list[int]]], image_token: int, pad_token: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[list[int]]]:
    """Lay several prompts that share an image prefix into one row per image.

    Parameters
    ----------
    sequences : sequence of sequence of list of int
        For every image the token ids of its prompts.  The prefix that the prompts share ends with
        the last image token.
    image_token, pad_token : int
        Ids of the image placeholder and of the padding.

    Returns
    -------
    input_ids, position_ids : Tensor of int64, (images, length)
        The packed rows.
    visible : Tensor of bool, (images, 1, length, length)
        What each position may attend to.
    ends : list of list of int
        Position of the last token of every prompt.
    """
    rows, places, owners, ends = [], [], [], []
    for prompts in sequences:
        first = prompts[0]
        prefix = len(first) - first[::-1].index(image_token)
        if any(prompt[:prefix] != first[:prefix] for prompt in prompts):
            raise ValueError("prompts of one image must be equal up to the last image token")
        row, place, owner = list(first[:prefix]), list(range(prefix)), [-1] * prefix
        last = []
        for index, prompt in enumerate(prompts):
            row += prompt[prefix:]
            place += range(prefix, len(prompt))
            owner += [index] * (len(prompt) - prefix)
            last.append(len(row) - 1)
        rows.append(row)
        places.append(place)
        owners.append(owner)
        ends.append(last)
    length = max(len(row) for row in rows)

    def fill(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([items + [value] * (length - len(items)) for items in lists])

    owner_ids = fill(owners, -2)  # padding sees padding, and nobody sees it
    same = owner_ids[:, :, None] == owner_ids[:, None, :]
    shared = (owner_ids[:, None, :] == -1) & (owner_ids[:, :, None] >= 0)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = ((same | shared) & causal)[:, None]
    return fill(rows, pad_token), fill(places, 0), visible, ends


def packed_inputs(
    model: Any, processor: Any, questions: Sequence[VisualQuestion]
) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """Model inputs with one row per image, and where the prompts of each row end (see `pack`)."""
    inputs = _tokenize(processor, questions)
    images: list[int] = []  # first question of every image
    sequences: list[list[list[int]]] = []
    for index, question in enumerate(questions):
        if index == 0 or question.image_id != questions[index - 1].image_id:
            images.append(index)
            sequences.append([])
        kept = inputs["attention_mask"][index].bool()
        sequences[-1].append(inputs["input_ids"][index][kept].tolist())
    pad = processor.tokenizer.pad_token_id
    ids, positions, visible, ends = pack(sequences, model.config.image_token_id, pad)
    blocked = torch.finfo(model.dtype).min
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill(~visible, blocked)
    placed = {
        "input_ids": ids.to(model.device),
        "pixel_values": inputs["pixel_values"][images].to(model.device, model.dtype),
        "attention_mask": mask.to(model.device),
        "position_ids": positions.to(model.device),
    }
    return placed, ends


def _packed(model: Any, processor: Any, questions: Sequence[VisualQuestion]) -> torch.Tensor:
    """Log-probabilities of questions ordered by image, (questions, vocabulary)."""
    inputs, ends = packed_inputs(model, processor, questions)
    needed = sorted({end for row in ends for end in row})
    column = {end: index for index, end in enumerate(needed)}
    logits = model(
        **inputs,
        logits_to_keep=torch.tensor(needed, device=model.device),
        use_cache=False,
    ).logits
    picked = [logits[row, column[end]] for row, last in enumerate(ends) for end in last]
    return torch.log_softmax(torch.stack(picked).float().double(), dim=-1)


def image_chunks(
    questions: Sequence[VisualQuestion], images: int
) -> Iterator[list[VisualQuestion]]:
    """Runs of questions that cover at most `images` images each."""
    chunk: list[VisualQuestion] = []
    seen = 0
    for question in questions:
        if not chunk or question.image_id != chunk[-1].image_id:
            if seen == images:
                yield chunk
                chunk, seen = [], 0
            seen += 1
        chunk.append(question)
    if chunk:
        yield chunk


def answer_distributions(
    model: Any,
    processor: Any,
    questions: Sequence[VisualQuestion],
    batch_size: int = 16,
    progress: bool = False,
    packed: bool = True,
) -> NDArray[np.float64]:
    """Log-probabilities over the whole vocabulary at the answer's position of every question.

    Parameters
    ----------
    model : transformers model
        A LLaVA-like model on any device; its attention implementation must take a
        four-dimensional mask (`"sdpa"`, `"eager"`) unless `packed` is false.
    processor : transformers processor
        The model's processor, with a tokenizer that has a padding token.
    questions : sequence of VisualQuestion
        Questions about one image should be neighbours.
    batch_size : int
        Images per forward pass.
    progress : bool
        Show a progress bar.
    packed : bool
        Ask all questions of an image in one sequence (default), or each on its own.

    Returns
    -------
    ndarray of float64, shape (questions, vocabulary)
        Softmax of the model's logits, taken in double precision.
    """
    if not questions:
        raise ValueError("expected at least one question, got none")
    was_training = model.training
    model.eval()
    parts: list[torch.Tensor] = []
    chunks: Any = list(image_chunks(questions, batch_size))
    if progress:
        from tqdm.auto import tqdm

        chunks = tqdm(chunks, unit="batch")
    with torch.inference_mode():
        for chunk in chunks:
            if packed:
                parts.append(_packed(model, processor, chunk).cpu())
            else:
                parts.append(_plain(model, _tokenize(processor, chunk)).cpu())
    model.train(was_training)
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)

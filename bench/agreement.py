"""Does the packed run time answer as the dense one? The trained tiny model, in float32.

Prompts are multiplied with decoded blocks; the tokens after them, few at a time, with the codes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.tiny_model import DEFAULT_MODEL
from examples.tiny_lmm.benchmark import benchmark_questions
from llava_fa import CompressionConfig, compress_checkpoint, load_model
from llava_fa.capture import load_processor

NEW_TOKENS = 4
AT_ONCE = 4  # questions, so that every code is multiplied as it is


def agreement_rows(codes: Sequence[tuple[str, float]], questions: int) -> list[dict[str, Any]]:
    """Compare, per code, logits relative to their size, and greedy answers."""
    asked = benchmark_questions(questions)
    processor = load_processor(DEFAULT_MODEL)
    batches = [
        processor(
            images=[question.pil_image() for question in asked[start : start + AT_ONCE]],
            text=[question.prompt for question in asked[start : start + AT_ONCE]],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        for start in range(0, questions, AT_ONCE)
    ]
    rows = []
    for codec, bits in codes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "packed"
            config = CompressionConfig(codec=codec, bits=bits)
            compress_checkpoint(DEFAULT_MODEL, folder, config, progress=False)
            dense, packed = (
                _answers(load_model(folder, dtype=torch.float32, runtime=runtime), batches)
                for runtime in ("dense", "packed")
            )
        difference = (packed[0] - dense[0]).norm() / dense[0].norm()
        others = (packed[1] != dense[1]).any(dim=1).sum()
        rows.append(
            {
                "code": f"{codec} {bits:g}",
                "questions": len(asked),
                "difference of logits": float(difference),
                "other answers": int(others),
            }
        )
    return rows


def _answers(model: Any, batches: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of every token after the prompts, and these tokens, greedily chosen."""
    logits, answers = [], []
    options = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    for inputs in batches:
        with torch.inference_mode():
            found = model.generate(
                **inputs, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, **options
            )
        logits.append(torch.stack(found.logits, dim=1).double())
        answers.append(found.sequences[:, -NEW_TOKENS:])
    return torch.cat(logits), torch.cat(answers)

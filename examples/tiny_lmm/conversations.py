"""Writes questions in LLaVA's conversation format: ``python -m examples.tiny_lmm.conversations``.

The folder gets ``conversations.json`` and the images, as ``llava-fa fmvr train`` reads them. Each
question is a conversation of its own, as the model was trained to be asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .benchmark import VisualQuestion, calibration_questions

CONVERSATION_SEED = 20_260_611
"""Of the images; the benchmark, calibration and training use others."""


def conversation(question: VisualQuestion) -> dict[str, Any]:
    """One question with its answer; the space keeps question and answer apart in the template."""
    return {
        "image": f"{question.image_id}.png",
        "conversations": [
            {"from": "human", "value": f"<image>{question.text}"},
            {"from": "gpt", "value": f" {question.answer}"},
        ],
    }


def write(folder: Path, questions: Sequence[VisualQuestion]) -> None:
    """Write conversations and images."""
    folder.mkdir(parents=True, exist_ok=True)
    for question in questions:
        path = folder / f"{question.image_id}.png"
        if not path.exists():
            question.pil_image().save(path)
    lines = [conversation(question) for question in questions]
    (folder / "conversations.json").write_text(json.dumps(lines, indent=1) + "\n")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m examples.tiny_lmm.conversations"
    )
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--questions", type=int, default=2400)
    arguments = parser.parse_args()
    write(arguments.folder, calibration_questions(arguments.questions, CONVERSATION_SEED))


if __name__ == "__main__":
    main()

"""Draw the three images of ``examples/images`` and their questions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from .questions import (
    ask_color,
    ask_count,
    ask_existence,
    ask_more,
    ask_shape,
    ask_side,
    ask_size,
)
from .scenes import draw_scene, sample_scene

SEED = 20_260_423
"""Of images whose nine questions the shipped model answers right; others it may not."""

_SAMPLERS = (
    (ask_side, ask_count, ask_color),
    (ask_existence, ask_size, ask_shape),
    (ask_more, ask_existence, ask_side),
)


def draw(folder: Path) -> None:
    """Write ``shapes_1.png`` to ``shapes_3.png`` and ``questions.jsonl`` to `folder`.

    The first lines of the list ask about different images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[list[dict[str, str]]] = []
    index = 0
    while len(entries) < len(_SAMPLERS):
        rng = np.random.default_rng([SEED, index])
        index += 1
        scene = sample_scene(rng, 4, 5)
        image, _ = draw_scene(scene, rng)
        asked = [ask(scene, rng) for ask in _SAMPLERS[len(entries)]]
        questions = [question for question in asked if question is not None]
        if len(scene) < 4 or len(questions) < len(asked):
            continue
        name = f"shapes_{len(entries) + 1}.png"
        Image.fromarray(image).save(folder / name)
        entries.append([{"image": name, "text": q.text, "answer": q.answer} for q in questions])
    lines = [json.dumps(entry) for row in zip(*entries, strict=True) for entry in row]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m examples.tiny_lmm.example_images"
    )
    parser.add_argument("folder", type=Path)
    draw(parser.parse_args().folder)


if __name__ == "__main__":
    main()

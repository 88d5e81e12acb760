"""The fixed held-out benchmark and a calibration set, generated on the fly and bit-reproducible.

Both are prefixes of endless streams: image ``i`` is drawn from the random stream of ``(seed, i)``,
its questions follow, and a question is taken only while its family and its answer are not over
their share.  So ``benchmark_questions(600)`` is the beginning of ``benchmark_questions(2000)``, and
no family has a majority answer worth guessing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .questions import FAMILIES, SAMPLERS, Question, Scene, ask_more, ask_size
from .scenes import draw_scene, sample_scene

BENCHMARK_SEED = 20_260_203
CALIBRATION_SEED = 20_260_311
"""Seeds of the two sets; training and its validation use others (see `train`)."""

_SHARES: dict[str, dict[str, float]] = {
    "existence": {"yes": 0.5, "no": 0.5},
    "count": {"0": 0.18, "1": 0.22, "2": 0.24, "3": 0.24, "4": 0.2, "5": 0.15, "6": 0.15},
    "side": {"left": 0.5, "right": 0.5},
    "compare": {"bigger": 0.25, "smaller": 0.25, "yes": 0.25, "no": 0.25},
}
"""Largest share of an answer in its family; others: `_DEFAULT_SHARE`."""

_DEFAULT_SHARE = {"color": 0.15, "shape": 0.2}


@dataclass(frozen=True, eq=False)
class VisualQuestion:
    """A question about an image.

    Attributes
    ----------
    image_id : int
        Number of the image within its set; equal for questions about the same image.
    image : ndarray of uint8, shape (96, 96, 3)
        RGB pixels, shared by the questions of an image.
    family : str
        One of `examples.tiny_lmm.questions.FAMILIES`.
    text : str
        The question.
    answer : str
        The true answer, one word.
    """

    image_id: int
    image: NDArray[np.uint8] = field(repr=False)
    family: str
    text: str
    answer: str

    @property
    def prompt(self) -> str:
        """Text for the processor: the image placeholder, then the question."""
        return f"<image> {self.text}"

    def pil_image(self) -> Image.Image:
        """The image as a PIL image."""
        return Image.fromarray(self.image)


def _share(family: str, answer: str) -> float:
    return _SHARES.get(family, {}).get(answer, _DEFAULT_SHARE.get(family, 1.0))


def _candidates(scene: Scene, rng: np.random.Generator, index: int) -> list[Question]:
    """One question of every family the scene allows; the two comparisons take turns."""
    samplers = dict(SAMPLERS)
    samplers["compare"] = partial(ask_more if index % 2 else ask_size)
    asked = (samplers[family](scene, rng) for family in FAMILIES)
    return [question for question in asked if question is not None]


def _stream(count: int, seed: int) -> list[VisualQuestion]:
    families: Counter[str] = Counter()
    answers: Counter[tuple[str, str]] = Counter()
    taken: list[VisualQuestion] = []
    index = 0
    while len(taken) < count:
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng)
        image, _ = draw_scene(scene, rng)
        image.setflags(write=False)
        fewest = min(families[family] for family in FAMILIES)
        for question in _candidates(scene, rng, index):
            family, key = question.family, (question.family, question.answer)
            if families[family] > fewest + 2:
                continue
            if answers[key] + 1 > _share(*key) * (families[family] + 1) + 1.0:
                continue
            families[family] += 1
            answers[key] += 1
            taken.append(VisualQuestion(index, image, family, question.text, question.answer))
        index += 1
    return taken[:count]


def benchmark_questions(count: int = 2000, seed: int = BENCHMARK_SEED) -> list[VisualQuestion]:
    """The held-out benchmark.

    Parameters
    ----------
    count : int
        Number of questions; a smaller set is a prefix of a larger one.
    seed : int
        Seed of the stream.

    Returns
    -------
    list of VisualQuestion
        Questions in the order of their images.

    Examples
    --------
    >>> questions = benchmark_questions(6)
    >>> sorted({question.family for question in questions}) == sorted(FAMILIES)
    True
    """
    return _stream(count, seed)


def calibration_questions(count: int = 256, seed: int = CALIBRATION_SEED) -> list[VisualQuestion]:
    """Questions for calibrating a compression, from another seed than the benchmark."""
    return _stream(count, seed)

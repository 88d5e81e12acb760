"""Asks the tiny model the benchmark with a trained pyramid, at any number of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.fmvr_training import Schedule, kept, load
from bench.score_store import Arrays, Store, hash_of_files, hash_of_tensors, key_of
from bench.tiny_model import ROOT
from examples.tiny_lmm.answering import answer_distributions
from examples.tiny_lmm.architecture import WORD_ID
from examples.tiny_lmm.benchmark import VisualQuestion, benchmark_questions
from examples.tiny_lmm.statistics import clustered_mean
from llava_fa.capture import load_processor
from llava_fa.fmvr import attach_fmvr, elastic_processor
from llava_fa.fmvr.fixed_scale import AtScale


def elastic_model(folder: Path, variant: str, changed: Arrays | None = None) -> Any:
    """The tiny model with a pyramid, with trained tensors in it if they are given."""
    model = attach_fmvr(load(folder), variant=variant).eval()
    if changed is not None:
        state = {
            name.replace("fmvr.", "model.fmvr.", 1): torch.from_numpy(value)
            for name, value in changed.items()
        }
        unexpected = model.load_state_dict(state, strict=False).unexpected_keys
        assert not unexpected, unexpected
    return model


class Examiner:
    """Scores trained variants; results are kept between runs.

    Parameters
    ----------
    folder : Path
        The tiny model.
    questions : int
        Size of the benchmark.
    schedule : Schedule
        Of the training.
    store : Store
        Where trained tensors and scores are kept.
    """

    def __init__(self, folder: Path, questions: int, schedule: Schedule, store: Store) -> None:
        self.folder, self._schedule, self._store = folder, schedule, store
        self._trained: dict[tuple[str, int], Arrays] = {}
        self.questions: Sequence[VisualQuestion] = benchmark_questions(questions)
        self.images = [question.image_id for question in self.questions]
        asking = (ROOT / "examples" / "tiny_lmm").glob("*.py")
        library = (ROOT / "python" / "llava_fa" / "fmvr").glob("*.py")
        self._code = hash_of_files([*asking, *library, Path(__file__)])

    def trained(self, variant: str, seed: int) -> Arrays:
        """Return what training changed, now or in an earlier run."""
        if (variant, seed) not in self._trained:
            found = kept(self.folder, variant, seed, self._schedule, self._store)
            self._trained[variant, seed] = found
        return self._trained[variant, seed]

    def hits(self, variant: str, seed: int, scale: int) -> npt.NDArray[np.float64]:
        """Return 1 for every question that is answered rightly, else 0."""
        changed = self.trained(variant, seed)
        tensors = {name: torch.from_numpy(value) for name, value in changed.items()}
        key = key_of(
            tensors=hash_of_tensors(tensors),
            scale=scale,
            questions=len(self.questions),
            code=self._code,
        )
        found = self._store.get(key)
        if found is None:
            model = elastic_model(self.folder, variant, changed)
            found = {"hits": self._asked(model, scale)}
            self._store.put(key, found)
        return found["hits"]

    def untrained_hits(self) -> npt.NDArray[np.float64]:
        """Return the hits of the model before training, with all visual tokens."""
        key = key_of(untrained=len(self.questions), code=self._code)
        found = self._store.get(key)
        if found is None:
            found = {"hits": self._asked(elastic_model(self.folder, "none"), 144)}
            self._store.put(key, found)
        return found["hits"]

    def interval(self, values: npt.NDArray[np.float64]) -> tuple[float, float]:
        """95 % interval of a mean over (seed, question): whole images are drawn anew."""
        return clustered_mean(values.mean(axis=0), self.images)[2]

    def _asked(self, model: Any, scale: int) -> npt.NDArray[np.float64]:
        processor = elastic_processor(load_processor(self.folder), model.config)
        answers = answer_distributions(
            AtScale(model, scale), AtScale(processor, scale), self.questions, batch_size=16
        )
        truth = np.array([WORD_ID[question.answer] for question in self.questions])
        return (answers.argmax(axis=1) == truth).astype(float)

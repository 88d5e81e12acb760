"""The tiny trained model as a measuring instrument: its weights, its inputs, its answers.

A ``Judge`` holds the dense model's answer distributions over the benchmark and scores any set of
replaced weights against them: KL divergence, agreement and accuracy, with intervals.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.baselines import Baseline
from bench.score_store import Store, hash_of_files, hash_of_tensors, key_of
from examples.tiny_lmm.answering import answer_distributions
from examples.tiny_lmm.architecture import WORD_ID
from examples.tiny_lmm.benchmark import (
    CALIBRATION_SEED,
    benchmark_questions,
    calibration_questions,
)
from examples.tiny_lmm.evaluate import evaluate
from examples.tiny_lmm.statistics import clustered_mean
from llava_fa import CompressionConfig, compress_matrix

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_MODEL = ROOT / "examples" / "tiny_lmm" / "model"
KEPT_DENSE = ("lm_head",)
LINEAR_NAMES = re.compile(r"(_proj|\.fc[12]|\.linear_[12])\.weight$")
HELD_OUT_SEED = 20_260_409
"""Seed of the images whose inputs measure output errors; training and all others differ."""

Interval = tuple[float, float]


def add_options(parser: argparse.ArgumentParser, questions: int) -> None:
    """Add the options of every bench that uses the model."""
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of the model")
    parser.add_argument("--questions", type=int, default=questions, help="size of the benchmark")
    parser.add_argument(
        "--calibration", type=int, default=256, help="questions that give the second moments"
    )


@dataclass(frozen=True)
class Score:
    """What replaced weights did to the answers; the arrays have one entry per question."""

    divergences: npt.NDArray[np.float64]
    hits: npt.NDArray[np.float64]
    agreement: float

    @property
    def kl(self) -> float:
        """Mean KL divergence from the dense model's answers, in nats."""
        return float(self.divergences.mean())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the fields as arrays, to be kept."""
        agreement = np.array(self.agreement)
        return {"divergences": self.divergences, "hits": self.hits, "agreement": agreement}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Score:
        """Undo ``arrays``."""
        return cls(arrays["divergences"], arrays["hits"], float(arrays["agreement"]))


class Judge:
    """The dense model with its answers, ready to try other weights.

    Parameters
    ----------
    folder : Path
        A checkpoint of the tiny model.
    questions : int
        How many questions of the held-out benchmark to ask.
    store : Store, optional
        Where answers and scores are kept between runs.
    """

    def __init__(self, folder: Path, questions: int, store: Store | None = None) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.questions = benchmark_questions(questions)
        self.images = [question.image_id for question in self.questions]
        self.weights = {
            name: module.weight.detach().clone()
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and not name.endswith(KEPT_DENSE)
        }
        self._store = Store(None) if store is None else store
        self._scores: dict[str, Score] = {}
        state = {name: tensor.float() for name, tensor in self.model.state_dict().items()}
        asking = ROOT / "examples" / "tiny_lmm"
        self.key = key_of(
            model=hash_of_tensors(state),
            questions=questions,
            code=hash_of_files(asking.glob("*.py")),
            torch=torch.__version__,
        )
        self.reference = self._reference()
        self.dense_accuracy = evaluate(self.reference, self.questions).accuracy

    @property
    def weight_count(self) -> int:
        """Number of weights in the matrices that are compressed."""
        return sum(weight.numel() for weight in self.weights.values())

    def score(self, weights: Mapping[str, Tensor]) -> Score:
        """Ask the benchmark with some weights replaced; equal weights are asked once."""
        key = key_of(judge=self.key, weights=hash_of_tensors(weights))
        if key not in self._scores:
            found = self._store.get(key)
            if found is None:
                score = self._scored(weights)
                self._store.put(key, score.arrays())
            else:
                score = Score.of_arrays(found)
            self._scores[key] = score
        return self._scores[key]

    def _reference(self) -> npt.NDArray[np.float64]:
        """Return the dense model's answers, log-probabilities (questions, vocabulary)."""
        found = self._store.get(self.key)
        if found is None:
            found = {"answers": self._ask()}
            self._store.put(self.key, found)
        return found["answers"]

    def output_errors(
        self, weights: Mapping[str, Tensor], second_moments: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Relative squared output error of every replaced matrix, for inputs of these moments.

        ``tr(E H E^T) / tr(W H W^T)`` with H = E[x x^T] and E the difference of the weights.
        """
        errors = {}
        for name, replaced in weights.items():
            moment, dense = second_moments[name].double(), self.weights[name].double()
            difference = dense - replaced.double()
            energy = float(((dense @ moment) * dense).sum())
            errors[name] = float(((difference @ moment) * difference).sum()) / energy
        return errors

    def _scored(self, weights: Mapping[str, Tensor]) -> Score:
        with self._replaced(weights):
            answers = self._ask()
        return Score(
            divergences=(np.exp(self.reference) * (self.reference - answers)).sum(axis=1),
            hits=self._right(answers),
            agreement=float((answers.argmax(axis=1) == self.reference.argmax(axis=1)).mean()),
        )

    def interval_of(self, values: npt.NDArray[np.float64]) -> Interval:
        """95 % interval of the mean of values per (seed, question), for these seeds.

        Whole images are drawn anew, because questions about one image are not independent.
        """
        return clustered_mean(values.mean(axis=0), self.images)[2]

    def log_ratio_error(
        self, first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
    ) -> float:
        """Standard error, over images, of the logarithm of the ratio of two means.

        Both have one value per (seed, question) and are paired by question.
        """
        _, owner = np.unique(self.images, return_inverse=True)
        sums = np.stack(
            [np.bincount(owner, weights=values.mean(axis=0)) for values in (first, second)]
        )
        drawn = np.random.default_rng(0).integers(0, sums.shape[1], (1000, sums.shape[1]))
        means = sums[:, drawn].mean(axis=2)
        return float(np.std(np.log(means[0]) - np.log(means[1]), ddof=1))

    def accuracy_loss(self, hits: npt.NDArray[np.float64]) -> tuple[float, Interval]:
        """Percentage points of accuracy lost, paired, and their 95 % interval, for these seeds."""
        lost = 100.0 * (self._right(self.reference) - hits)
        return float(lost.mean()), self.interval_of(lost)

    def _right(self, answers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        truth = np.array([WORD_ID[question.answer] for question in self.questions])
        return (answers.argmax(axis=1) == truth).astype(float)

    def second_moments(
        self, count: int, *, full: bool = False, seed: int = CALIBRATION_SEED
    ) -> dict[str, Tensor]:
        """E[x_j^2] (float32), or E[x x^T] (float64) if ``full``, of every matrix's input.

        From ``count`` questions on images that are not in the benchmark; seed ``HELD_OUT_SEED``
        gives others than calibration sees.
        """
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = dict.fromkeys(self.weights, 0)

        def watch(name: str) -> Any:
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0].reshape(-1, inputs[0].shape[-1])
                x = x.double()
                moment = x.T @ x if full else x.square().sum(dim=0)
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + moment
                rows[name] += len(x)

            return hook

        modules = dict(self.model.named_modules())
        handles = [modules[name].register_forward_pre_hook(watch(name)) for name in self.weights]
        try:
            # One image at a time: rows of several images would be padded to equal length.
            asked = calibration_questions(count, seed)
            answer_distributions(self.model, self.processor, asked, batch_size=1)
        finally:
            for handle in handles:
                handle.remove()
        means = {name: total / rows[name] for name, total in sums.items()}
        return means if full else {name: mean.float() for name, mean in means.items()}

    def _ask(self) -> npt.NDArray[np.float64]:
        return answer_distributions(self.model, self.processor, self.questions, batch_size=32)

    @contextmanager
    def _replaced(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        modules = dict(self.model.named_modules())
        with torch.no_grad():
            for name, weight in weights.items():
                modules[name].weight.copy_(weight)
        try:
            yield
        finally:
            with torch.no_grad():
                for name in weights:
                    modules[name].weight.copy_(self.weights[name])


def linear_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of the towers' linear layers by name; none if there is no model."""
    path = folder / "model.safetensors"
    if not path.exists():
        return {}
    return {
        name.removesuffix(".weight"): tensor.float()
        for name, tensor in load_file(path).items()
        if LINEAR_NAMES.search(name)
    }


@dataclass(frozen=True)
class Candidate:
    """Weights to try in the dense model's place, and all bits that storing them takes."""

    weights: dict[str, Tensor]
    stored_bits: int

    @property
    def bits_per_weight(self) -> float:
        """All stored bits over the number of weights replaced."""
        return self.stored_bits / sum(weight.numel() for weight in self.weights.values())


def compressed(
    weights: Mapping[str, Tensor],
    config: CompressionConfig,
    input_second_moments: Mapping[str, Tensor] | None = None,
) -> Candidate:
    """Compress every matrix with the library."""
    dense, bits = {}, 0
    for name, weight in weights.items():
        moment = input_second_moments[name] if input_second_moments else None
        matrix = compress_matrix(weight, config, input_second_moment=moment)
        dense[name] = torch.as_tensor(matrix.dense())
        bits += 8 * matrix.nbytes
    return Candidate(dense, bits)


def coded(weights: Mapping[str, Tensor], code: Callable[[Tensor], Baseline]) -> Candidate:
    """Apply one of the baselines to every matrix."""
    results = {name: code(weight) for name, weight in weights.items()}
    return Candidate(
        {name: result.dense for name, result in results.items()},
        sum(result.stored_bits for result in results.values()),
    )


def part_of(name: str) -> str:
    """The tower a matrix belongs to: vision, projector or language."""
    if "vision_tower" in name:
        return "vision"
    return "projector" if "projector" in name else "language"

"""Score a model on the benchmark: accuracy, and how far its answers moved from a reference's.

``python -m examples.tiny_lmm.evaluate MODEL_DIR [--reference DIR] [--json]``
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, AutoProcessor

from .answering import answer_distributions
from .architecture import WORD_ID
from .benchmark import BENCHMARK_SEED, VisualQuestion, benchmark_questions
from .questions import FAMILIES
from .rounding import round_to_nearest
from .statistics import clustered_mean, wilson_interval

__all__ = [
    "Comparison",
    "Evaluation",
    "Proportion",
    "answer_distributions",
    "compare",
    "evaluate",
    "load",
]


@dataclass(frozen=True)
class Proportion:
    """A share of questions with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, hits: NDArray[np.bool_]) -> Proportion:
        """Share of true entries."""
        low, high = wilson_interval(int(hits.sum()), len(hits))
        return cls(float(hits.mean()) if len(hits) else 0.0, low, high, len(hits))

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] of {self.count}"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over all questions and per family."""

    accuracy: Proportion
    families: dict[str, Proportion]


@dataclass(frozen=True)
class Comparison:
    """What compression did to the answers.

    Attributes
    ----------
    kl : float
        Mean Kullback-Leibler divergence KL(reference || model) at the answer, in nats.
    kl_standard_error : float
        Its standard error, with images as clusters.
    kl_interval : tuple of float
        95 % bootstrap interval of the mean, with images as clusters.
    agreement : Proportion
        Questions on which both give the same most probable answer.
    evaluation, reference : Evaluation
        Accuracy of the model and of the reference.
    """

    kl: float
    kl_standard_error: float
    kl_interval: tuple[float, float]
    agreement: Proportion
    evaluation: Evaluation
    reference: Evaluation


def evaluate(
    log_probabilities: NDArray[np.float64], questions: Sequence[VisualQuestion]
) -> Evaluation:
    """Accuracy of the most probable words.

    Parameters
    ----------
    log_probabilities : ndarray of float64, shape (questions, vocabulary)
        Result of `answer_distributions`.
    questions : sequence of VisualQuestion
        The same questions in the same order.

    Returns
    -------
    Evaluation
        Overall and per family.
    """
    _check(log_probabilities, questions)
    truth = np.asarray([WORD_ID[question.answer] for question in questions])
    hits = log_probabilities.argmax(axis=1) == truth
    family = np.asarray([question.family for question in questions])
    return Evaluation(
        accuracy=Proportion.of(hits),
        families={name: Proportion.of(hits[family == name]) for name in FAMILIES},
    )


def compare(
    reference_log_probabilities: NDArray[np.float64],
    log_probabilities: NDArray[np.float64],
    questions: Sequence[VisualQuestion],
) -> Comparison:
    """Compare a model's answers with a reference's.

    Parameters
    ----------
    reference_log_probabilities, log_probabilities : ndarray of float64
        Results of `answer_distributions`, shape (questions, vocabulary) each.
    questions : sequence of VisualQuestion
        The questions of both.

    Returns
    -------
    Comparison
        Divergence, agreement and both accuracies.
    """
    _check(reference_log_probabilities, questions)
    _check(log_probabilities, questions)
    difference = reference_log_probabilities - log_probabilities
    divergence = (np.exp(reference_log_probabilities) * difference).sum(axis=1)
    clusters = [question.image_id for question in questions]
    mean, error, interval = clustered_mean(divergence, clusters)
    same = reference_log_probabilities.argmax(axis=1) == log_probabilities.argmax(axis=1)
    return Comparison(
        kl=mean,
        kl_standard_error=error,
        kl_interval=interval,
        agreement=Proportion.of(same),
        evaluation=evaluate(log_probabilities, questions),
        reference=evaluate(reference_log_probabilities, questions),
    )


def _check(log_probabilities: NDArray[np.float64], questions: Sequence[VisualQuestion]) -> None:
    if log_probabilities.ndim != 2 or len(log_probabilities) != len(questions):
        raise ValueError(
            f"expected log-probabilities of shape ({len(questions)}, vocabulary), "
            f"got {log_probabilities.shape}"
        )


def load(folder: str, device: str = "cpu") -> tuple[Any, Any]:
    """Model in float32 and processor from a folder, compressed or not."""
    with contextlib.suppress(ImportError):
        importlib.import_module("llava_fa.hf")  # registers the compressed format, if installed
    models: Any = AutoModelForImageTextToText
    processors: Any = AutoProcessor
    model = models.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval(), processors.from_pretrained(folder)


def _report(result: Evaluation | Comparison) -> str:
    evaluation = result.evaluation if isinstance(result, Comparison) else result
    lines = [f"{'accuracy':<12}{evaluation.accuracy}"]
    lines += [f"  {name:<10}{value}" for name, value in evaluation.families.items()]
    if isinstance(result, Comparison):
        low, high = result.kl_interval
        lines += [
            f"{'reference':<12}{result.reference.accuracy}",
            f"{'agreement':<12}{result.agreement}",
            f"{'KL (nats)':<12}{result.kl:.5f} [{low:.5f}, {high:.5f}]",
        ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, evaluate and print."""
    parser = argparse.ArgumentParser(
        description="Score a model on the generated visual questions.",
        prog="python -m examples.tiny_lmm.evaluate",
    )
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--reference", help="folder of the model to compare with")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=BENCHMARK_SEED)
    parser.add_argument("--batch-size", type=int, default=16, help="images per forward pass")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--round-to-nearest", type=int, metavar="BITS", help="first round the linear layers"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    questions = benchmark_questions(arguments.questions, arguments.seed)

    def answers(folder: str, bits: int | None) -> NDArray[np.float64]:
        model, processor = load(folder, arguments.device)
        if bits is not None:
            round_to_nearest(model, bits)
        return answer_distributions(model, processor, questions, arguments.batch_size)

    own = answers(arguments.model, arguments.round_to_nearest)
    result: Evaluation | Comparison = evaluate(own, questions)
    if arguments.reference is not None:
        result = compare(answers(arguments.reference, None), own, questions)
    print(json.dumps(dataclasses.asdict(result)) if arguments.json else _report(result))


if __name__ == "__main__":
    main()

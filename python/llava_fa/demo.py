"""The demonstration: compress the tiny multimodal model, score it, ask it three questions."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .capture import load_processor
from .compress import compress_checkpoint
from .config import CompressionConfig
from .demo_scales import ScaleRow, accuracy_by_scale, scale_lines
from .errors import CheckpointError
from .generate import answer
from .loading import load_model
from .report import CompressionReport

_IMAGE_QUESTIONS = "questions.jsonl"
DENSE_BITS = 16.0
"""Bits per weight of the example's model as it is stored."""

SHARE_AT_SCALES = 4
"""One question in so many is asked at every number of visual tokens."""


@dataclass(frozen=True)
class DemoResult:
    """Figures of the demonstration.

    ``answers`` are (image, question, dense, compressed), ``scales`` the accuracies of both by
    visual tokens.
    """

    report: CompressionReport
    folder_bytes: tuple[int, int]
    questions: int
    accuracy: tuple[float, float]
    agreement: float
    kl: float
    answers: tuple[tuple[str, str, str, str], ...]
    scales: tuple[ScaleRow, ...]
    seconds: float

    def to_json(self) -> str:
        """Return the figures as a JSON object."""
        return json.dumps(
            {
                "nbytes": {"dense": self.folder_bytes[0], "compressed": self.folder_bytes[1]},
                "bits_per_weight": self.report.bits_per_weight,
                "questions": self.questions,
                "accuracy": {"dense": self.accuracy[0], "compressed": self.accuracy[1]},
                "agreement": self.agreement,
                "kl": self.kl,
                "answers": [list(item) for item in self.answers],
                "accuracy by visual tokens": dict(self.scales),
                "seconds": self.seconds,
            },
            indent=2,
        )

    def table(self) -> str:
        """Return the result as the command line shows it."""
        before, after = self.folder_bytes
        lines = [
            f"{'':<30}{'dense':>12}{'compressed':>12}",
            f"{'size of the weights':<30}{before / 1e6:>9.2f} MB{after / 1e6:>9.2f} MB",
            f"{'accuracy':<30}{self.accuracy[0]:>12.4f}{self.accuracy[1]:>12.4f}",
            f"{'answers that agree':<30}{'':>12}{self.agreement:>12.4f}",
            f"{'KL divergence (nats)':<30}{'':>12}{self.kl:>12.5f}",
            f"({self.questions} generated questions; {self.report.bits_per_weight:.3f} stored bits "
            "per weight in the compressed matrices)",
        ]
        for image, question, dense, compressed in self.answers:
            lines += [
                "",
                f"{image}: {question}",
                f"  dense: {dense}",
                f"  compressed: {compressed}",
            ]
        if self.scales:
            bits = (DENSE_BITS, self.report.bits_per_weight)
            lines += ["", *scale_lines(self.scales, bits)]
        return "\n".join([*lines, "", f"{self.seconds:.0f} s in total"])


def run_demo(
    example: str | os.PathLike[str] = "examples/tiny_lmm",
    output: str | os.PathLike[str] | None = None,
    *,
    config: CompressionConfig | None = None,
    questions: int = 2000,
    progress: bool = True,
) -> DemoResult:
    """Compress the example's model and compare it with the dense one.

    Parameters
    ----------
    example
        Folder of the tiny multimodal model, with its weights, generator and evaluation.
    output
        Where to leave the compressed model; a temporary folder if None.
    config
        Settings; 4 bits if None.
    questions
        How many questions of the held-out benchmark to score.
    """
    begin = time.monotonic()
    folder = Path(example)
    model_folder = _find_model(folder)
    with _output_folder(output) as packed:
        report = compress_checkpoint(
            model_folder, packed, config, progress=progress, overwrite=output is not None
        )
        dense, compressed = _load(model_folder), _load(packed)
        processor = load_processor(model_folder)
        size = (_weight_bytes(model_folder), _weight_bytes(packed))
    code = _example_code(folder)
    comparison = _score(code, [dense, compressed], processor, questions, progress)
    answers = tuple(
        (
            path.name,
            text,
            answer(dense, processor, text, path),
            answer(compressed, processor, text, path),
        )
        for path, text in _image_questions(folder.parent / "images")
    )
    return DemoResult(
        report=report,
        folder_bytes=size,
        questions=questions,
        accuracy=(comparison.reference.accuracy.value, comparison.evaluation.accuracy.value),
        agreement=comparison.agreement.value,
        kl=comparison.kl,
        answers=answers,
        scales=_score_scales(code, folder, [dense, compressed], processor, questions, progress),
        seconds=time.monotonic() - begin,
    )


def _find_model(folder: Path) -> Path:
    for candidate in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
        if (candidate / "config.json").exists():
            return candidate
    raise CheckpointError(
        f"{folder}: no model of the example there; run the demo in the root of a clone of "
        "llava-fa, or name the folder with --example DIR"
    )


@contextmanager
def _output_folder(output: str | os.PathLike[str] | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="llava_fa_demo_") as temporary:
        yield Path(temporary) / "compressed"


def _load(folder: Path) -> Any:
    return load_model(folder, dtype=torch.float32)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _example_code(folder: Path) -> tuple[Any, Any]:
    """Import the example's own evaluation and benchmark."""
    root = str(folder.resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    name = f"{folder.resolve().parent.name}.{folder.resolve().name}"
    try:
        evaluation = importlib.import_module(f"{name}.evaluate")
        benchmark = importlib.import_module(f"{name}.benchmark")
    except ImportError as error:
        raise CheckpointError(f"{folder}: no evaluation code there ({error})") from error
    return evaluation, benchmark


def _score(
    code: tuple[Any, Any], models: list[Any], processor: Any, count: int, progress: bool
) -> Any:
    """Compare the answers' distributions."""
    evaluation, benchmark = code
    asked = benchmark.benchmark_questions(count)
    dense, packed = (
        evaluation.answer_distributions(model, processor, asked, progress=progress)
        for model in models
    )
    return evaluation.compare(dense, packed, asked)


def _score_scales(
    code: tuple[Any, Any],
    folder: Path,
    models: list[Any],
    processor: Any,
    count: int,
    progress: bool,
) -> tuple[ScaleRow, ...]:
    """Score both models at every number of visual tokens, on fewer questions."""
    evaluation, benchmark = code
    asked = benchmark.benchmark_questions(max(1, count // SHARE_AT_SCALES))

    def accuracy(model: Any, own: Any) -> float:
        answers = evaluation.answer_distributions(model, own, asked, progress=progress)
        return float(evaluation.evaluate(answers, asked).accuracy.value)

    return accuracy_by_scale(folder, models, processor, accuracy)


def _image_questions(folder: Path) -> list[tuple[Path, str]]:
    """Read the three questions about the images that come with the examples."""
    path = folder / _IMAGE_QUESTIONS
    if not path.exists():
        raise CheckpointError(f"{path}: expected the example images' questions there")
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [(folder / line["image"], line["text"]) for line in lines[:3]]

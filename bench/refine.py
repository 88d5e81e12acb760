"""What does refinement by distillation gain, on questions that it has not seen?

The tiny model is compressed, then refined on calibration questions with ``refine_checkpoint``; KL
divergence and accuracy are those on the held-out benchmark, before and after, under several seeds
of the random signs. All questions about an image share one row, and the distributions are compared
at the end of every question, where its answer begins. Results are kept in ``bench/cache``, so a run
that was stopped continues.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import support, tiny_model
from bench.allocation_trial import examples as question_batches
from bench.score_store import CACHE, Arrays, Store, hash_of_files, key_of
from bench.tiny_model import ROOT, Judge
from examples.tiny_lmm.answering import image_chunks, packed_inputs
from examples.tiny_lmm.benchmark import calibration_questions
from llava_fa import (
    CompressionConfig,
    RefinementOptions,
    compress_checkpoint,
    refine_checkpoint,
)
from llava_fa.packed_checkpoint import PackedCheckpoint


@dataclass(frozen=True)
class Case:
    """One way to compress."""

    name: str
    config: CompressionConfig
    calibrated: bool = True


CASES = (
    Case("ring, no data", CompressionConfig(bits=2, odc="none"), calibrated=False),
    Case("trellis + feedback", CompressionConfig(bits=2, codec="trellis", odc="none")),
    Case("trellis + feedback", CompressionConfig(bits=1, codec="trellis", odc="none")),
    Case("ring, no data, rank 8", CompressionConfig(bits=2, odc="none", rank=8), calibrated=False),
)
QUICK_CASES = (CASES[0],)


def refinement_examples(judge: Judge, count: int, images: int) -> list[dict[str, Tensor]]:
    """Calibration questions as model inputs with labels, ``images`` images in a batch."""
    return [
        _labelled(*packed_inputs(judge.model, judge.processor, chunk))
        for chunk in image_chunks(calibration_questions(count), images)
    ]


def _labelled(inputs: dict[str, Tensor], ends: list[list[int]]) -> dict[str, Tensor]:
    """Label what follows the end of every question; the longest row needs one more place for it."""
    rows, length = inputs["input_ids"].shape
    mask = inputs["attention_mask"]
    blocked = torch.full((rows, 1, length + 1, length + 1), torch.finfo(mask.dtype).min)
    blocked[:, :, :length, :length] = mask
    blocked[:, :, length, length] = 0.0
    labels = torch.full((rows, length + 1), -100)
    for row, last in enumerate(ends):
        labels[row, [end + 1 for end in last]] = 0  # any token: the dense model gives the target
    longer = {
        key: torch.nn.functional.pad(inputs[key], (0, 1)) for key in ("input_ids", "position_ids")
    }
    return {**inputs, **longer, "attention_mask": blocked, "labels": labels}


class Workshop:
    """Compresses and refines the tiny model, and scores it before and after.

    Parameters
    ----------
    arguments
        The bench's options.
    folder
        For checkpoints while the bench runs.
    store
        Where results are kept between runs.
    """

    def __init__(self, arguments: Any, folder: Path, store: Store) -> None:
        self._arguments, self._folder, self._store = arguments, folder, store
        self._moments = folder / "moments.safetensors"
        self.judge = Judge(arguments.model, arguments.questions, store)
        self.options = RefinementOptions(
            steps=arguments.steps, learning_rate=arguments.learning_rate, batch_size=1
        )
        library = ROOT / "python" / "llava_fa"
        self._code = hash_of_files(
            [*library.glob("trainable_*.py"), *library.glob("distillation*.py"), Path(__file__)]
        )

    def result(self, case: Case, seed: int) -> Arrays:
        """Return what a case gives under a seed, measured now or in an earlier run."""
        counts = ("calibration", "examples", "images")
        key = key_of(
            judge=self.judge.key,
            case=[case.name, case.config.to_dict(), seed],
            options=self.options.to_dict(),
            counts=[getattr(self._arguments, name) for name in counts],
            code=self._code,
        )
        found = self._store.get(key)
        if found is None:
            found = self._measured(case, seed)
            self._store.put(key, found)
        return found

    def _measured(self, case: Case, seed: int) -> Arrays:
        packed = self._compress(case, seed)
        refined = packed.with_name(f"{packed.name} refined")
        inputs = refinement_examples(self.judge, self._arguments.examples, self._arguments.images)
        report = refine_checkpoint(
            packed,
            self._arguments.model,
            refined,
            inputs,
            self.options,
            calibration_samples=len(inputs),
            progress=False,
        )
        arrays: Arrays = {
            "stored bits": np.array(report.compression.bits_per_weight),
            "values trained": np.array(report.trained_values),
            "held-out ratio": np.array(report.outcome.after / report.outcome.before),
            "best step": np.array(report.outcome.best_step),
        }
        for moment, folder in (("before", packed), ("after", refined)):
            found = PackedCheckpoint.open(folder)
            score = self.judge.score(
                {name: found.read_matrix(name).dense() for name in found.specs}
            )
            arrays[f"KL {moment}"], arrays[f"hits {moment}"] = score.divergences, score.hits
        return arrays

    def _compress(self, case: Case, seed: int) -> Path:
        """Compress the model; the first calibrated case collects the moments for all."""
        output = self._folder / f"{case.name} {case.config.bits:g} {seed}"
        data: dict[str, Any] = {}
        if case.calibrated and self._moments.exists():
            data = {"load_calibration": self._moments}
        elif case.calibrated:
            batches = question_batches(self.judge, self._arguments.calibration)
            data = {"calibration_data": batches, "save_calibration": self._moments}
        config = case.config.replace(seed=seed)
        compress_checkpoint(self._arguments.model, output, config, progress=False, **data)
        return output


def measure(workshop: Workshop, case: Case, seeds: Sequence[int]) -> dict[str, Any]:
    """Return a row: before and after, mean over the seeds."""
    results = []
    for seed in seeds:
        results.append(workshop.result(case, seed))
        means = [float(results[-1][f"KL {moment}"].mean()) for moment in ("before", "after")]
        print(case.name, case.config.bits, f"seed {seed}", _figures(means), flush=True)
    old, new = (
        np.stack([result[f"KL {moment}"] for result in results]) for moment in ("before", "after")
    )
    ratio, error = float(new.mean() / old.mean()), workshop.judge.log_ratio_error(new, old)
    bounds = (ratio * np.exp(-1.96 * error), ratio * np.exp(1.96 * error))
    return {
        "method": case.name,
        "bits": case.config.bits,
        "stored bits": float(results[0]["stored bits"]),
        "KL before": float(old.mean()),
        "KL after": float(new.mean()),
        "ratio": ratio,
        "ratio interval": "{:.3f} to {:.3f}".format(*bounds),
        "ratio by seed": _figures(new.mean(axis=1) / old.mean(axis=1)),
        "accuracy % before": 100 * float(np.mean([result["hits before"] for result in results])),
        "accuracy % after": 100 * float(np.mean([result["hits after"] for result in results])),
        "held-out ratio": _figures(float(result["held-out ratio"]) for result in results),
        "best steps": _figures(float(result["best step"]) for result in results),
        "values trained": int(results[0]["values trained"]),
    }


def _figures(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge: refinement never changes answers more than no refinement."""
    return [
        {
            "target": f"{row['method']} {row['bits']:g}: KL after at most KL before",
            "measured": row["KL after"],
            "bound": row["KL before"],
            "met": row["KL after"] <= row["KL before"],
        }
        for row in rows
    ]


def main() -> None:
    """Measure all cases and publish."""
    defaults = RefinementOptions()
    parser = support.parser(__doc__, "refine")
    tiny_model.add_options(parser, questions=500)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the random signs")
    parser.add_argument("--examples", type=int, default=1024, help="questions to refine on")
    parser.add_argument("--images", type=int, default=8, help="images per step")
    parser.add_argument("--only", default="", metavar="REGEX", help='cases by "NAME BITS"')
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    arguments = parser.parse_args()
    cases = [c for c in CASES if re.search(arguments.only, f"{c.name} {c.config.bits:g}")]
    if arguments.quick:
        arguments.questions, arguments.calibration, arguments.seeds = 12, 4, 1
        arguments.examples, arguments.images, arguments.steps = 24, 2, 2
        cases = list(QUICK_CASES)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(None if arguments.quick else CACHE)
        workshop = Workshop(arguments, Path(folder), store)
        rows = [measure(workshop, case, range(arguments.seeds)) for case in cases]
    support.publish(
        "refine",
        arguments.json,
        {"Before and after refinement": rows, "Targets": verdicts(rows)},
        {
            "questions": arguments.questions,
            "calibration questions": arguments.calibration,
            "refinement questions": arguments.examples,
            "options": workshop.options.to_dict(),
            "seconds_taken": time.perf_counter() - begin,
        },
    )


if __name__ == "__main__":
    main()

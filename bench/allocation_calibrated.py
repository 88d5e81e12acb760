"""Does a mixed allocation beat the same bits everywhere under calibration, trellis and feedback?

At every budget of stored bits, with and without channel scales: the largest uniform code size that
fits, and the allocation of the default rule. At the strict budgets also what else could be counted:
errors of the weights as without data, relative errors of the whole outputs, the number of weights,
measured sensitivities. KL divergence of the tiny model's answers from the dense model's, several
seeds. Moments, probes and benchmark come from different images. Beside it, how well output errors
are predicted. Scores are kept in ``bench/cache``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench import gptq, support, tiny_model
from bench.allocation_trial import Allocator, Settings, Trial, examples, figures
from bench.score_store import CACHE, Store
from bench.tiny_model import Judge, coded
from llava_fa import CompressionConfig
from llava_fa.sensitivity import measured_weights

BUDGETS = (1.6, 2.0, 2.1, 2.25, 2.5, 2.75, 3.0, 3.1, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5)
STRICT = (1.6, 2.1, 3.1)
AGAINST_GPTQ = 2.1
"""Stored bits at which the KL has to be at most half of the strong GPTQ's at 2 bits."""
CODECS = ("ring", "trellis")
PREDICTED_SIZES = (1.0, 2.0, 3.0, 4.0)


def prediction(
    trial: Trial, codecs: Sequence[str], sizes: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Compare measured with predicted output errors, over all matrices."""
    profiles = {name: trial.profile(name, (0,)) for name in trial.judge.weights}
    for codec in codecs:
        for bits in sizes:
            config = trial.base.replace(codec=codec, bits=bits)
            decoded = {name: trial.decoded(name, config) for name in trial.judge.weights}
            errors = trial.judge.output_errors(decoded, trial.moments)
            ratios = [
                error / profiles[name].relative_error(config) for name, error in errors.items()
            ]
            yield {
                "odc": config.odc,
                "codec": codec,
                "bits": bits,
                "measured / predicted": float(np.exp(np.mean(np.log(ratios)))),
                "smallest": min(ratios),
                "largest": max(ratios),
            }


def compare(trial: Trial, budgets: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Give a row per budget: the best uniform that fits, and the default rule."""
    allocator = Allocator(trial, (0,))
    equal = dict.fromkeys(trial.judge.weights, 1.0)
    for budget in budgets:
        size = trial.best_uniform(budget)
        row = {"odc": trial.base.odc, "budget": budget, "uniform bits": size.bits}
        row |= _scored(trial, "uniform", trial.uniform(bits=size.bits))
        row |= _scored(trial, "matrix", allocator(equal, budget)[0])
        print(row, flush=True)
        yield row


def compare_rules(
    trial: Trial, budgets: Sequence[float], questions: int
) -> Iterator[dict[str, Any]]:
    """Give a row per budget: the default rule and everything else that could be counted."""
    weights = trial.judge.weights
    equal = dict.fromkeys(weights, 1.0)
    size = {name: float(weight.numel()) for name, weight in weights.items()}
    settings = dict.fromkeys(weights, trial.base)
    inputs = examples(trial.judge, questions)
    measured = measured_weights(trial.judge.model, inputs, settings, trial.moments)
    knowing = Allocator(trial, (0,))
    choices = {
        "matrix": (knowing, equal),
        "weight errors": (Allocator(trial, (0,), blind=True), equal),
        "fed-back distortion": (Allocator(trial, (0,), counted="fed back"), equal),
        "output errors": (Allocator(trial, (0,), counted="outputs"), equal),
        "size": (knowing, size),
        "measured": (knowing, measured),
    }
    for budget in budgets:
        row: dict[str, Any] = {"odc": trial.base.odc, "budget": budget}
        for label, (allocator, by_matrix) in choices.items():
            row |= _scored(trial, label, allocator(by_matrix, budget)[0])
        print(row, flush=True)
        yield row


def _scored(trial: Trial, label: str, settings: Settings) -> dict[str, Any]:
    found = trial.kl(settings)
    return {
        f"{label} stored": trial.stored_bits(settings),
        f"{label} KL": float(np.mean(found)),
        f"{label} by seed": figures(found),
    }


def verdicts(rows: Sequence[dict[str, Any]], gptq_kl: float) -> Iterator[dict[str, Any]]:
    """Judge the default rule against the uniform allocation and against GPTQ."""
    for row in rows:
        within = row["matrix stored"] <= row["budget"]
        where = f"odc {row['odc']}, {row['budget']:g} bits"
        yield {
            "target": f"{where}: mixed KL at most the best uniform's that fits",
            "measured": row["matrix KL"],
            "bound": row["uniform KL"],
            "met": row["matrix KL"] <= row["uniform KL"] and within,
        }
        if row["budget"] == AGAINST_GPTQ:
            yield {
                "target": f"{where}: mixed KL at most half of the strong GPTQ's at 2 bits",
                "measured": row["matrix KL"],
                "bound": gptq_kl / 2,
                "met": row["matrix KL"] <= gptq_kl / 2 and within,
            }


def strong_gptq(judge: Judge, trial: Trial) -> dict[str, Any]:
    """Return stored bits and KL of the strong GPTQ at 2 bits on the same moments."""
    settings = gptq.strong(2)
    names = {id(weight): name for name, weight in judge.weights.items()}
    candidate = coded(
        judge.weights,
        lambda weight: gptq.gptq(weight, trial.moments[names[id(weight)]].double(), settings),
    )
    return {"stored": candidate.bits_per_weight, "KL": judge.score(candidate.weights).kl}


def main() -> None:
    """Measure both kinds of scales and publish."""
    parser = support.parser(__doc__, "allocation_calibrated")
    tiny_model.add_options(parser, questions=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--probes", type=int, default=96, help="questions that probe sensitivity")
    arguments = parser.parse_args()
    budgets: Sequence[float] = BUDGETS
    strict: Sequence[float] = STRICT
    sizes: Sequence[float] = PREDICTED_SIZES
    state_bits = CompressionConfig.state_bits
    if arguments.quick:
        arguments.questions, arguments.calibration, arguments.seeds = 12, 4, 1
        arguments.probes, sizes, state_bits = 4, (2.0,), 8
        budgets = strict = (AGAINST_GPTQ,)
    begin = time.perf_counter()
    store = Store(None if arguments.quick else CACHE)
    judge = Judge(arguments.model, arguments.questions, store)
    moments = judge.second_moments(arguments.calibration, full=True)
    rows: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    predicted: list[dict[str, Any]] = []
    for odc in ("none", "spatial"):
        base = CompressionConfig(codec="trellis", odc=odc, state_bits=state_bits)
        trial = Trial(judge, arguments.seeds, base, moments)
        rows += compare(trial, budgets)
        rules += compare_rules(trial, strict, arguments.probes)
        predicted += prediction(trial, CODECS, sizes)
    baseline = strong_gptq(judge, trial)
    support.publish(
        "allocation_calibrated",
        arguments.json,
        {
            "KL at every budget": rows,
            "What could be counted": rules,
            "Output errors of all matrices, measured over predicted": predicted,
            "GPTQ g64 strong, 2 bits": [baseline],
            "Targets": list(verdicts(rows, baseline["KL"])),
        },
        {
            "questions": arguments.questions,
            "calibration questions": arguments.calibration,
            "probe questions": arguments.probes,
            "seconds_taken": time.perf_counter() - begin,
        },
    )


if __name__ == "__main__":
    main()

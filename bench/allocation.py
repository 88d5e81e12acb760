"""Does a mixed allocation beat the same bits everywhere, and which sensitivity weights are best?

At every budget of stored bits: the largest uniform code size that fits, and allocations under each
rule of ``llava_fa.sensitivity``, as KL divergence of the tiny model's answers from the dense
model's, mean of several seeds of the random signs. ``measured`` measures on questions about images
that are not in the benchmark. Beside it, what unbiased codes do at uniform sizes, and what choosing
ranks does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench import support, tiny_model
from bench.allocation_trial import Allocator, Trial, examples, figures
from bench.tiny_model import Judge
from llava_fa import CompressionConfig
from llava_fa.sensitivity import measured_weights, rule_weights

BUDGETS = tuple(np.arange(2.0, 4.51, 0.25).tolist())
RANKS = (0, 4, 8, 16)
BASE = CompressionConfig(odc="none")


def all_weights(judge: Judge, questions: int) -> dict[str, dict[str, float]]:
    """Return the sensitivity weights of every rule."""
    shapes = {name: (len(weight), weight.shape[1]) for name, weight in judge.weights.items()}
    found = {rule: rule_weights(rule, shapes) for rule in ("matrix", "size")}
    probes = dict.fromkeys(judge.weights, BASE)
    found["measured"] = measured_weights(judge.model, examples(judge, questions), probes)
    return found


def compare(
    trial: Trial, budgets: Sequence[float], weights: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return a row per budget: the best uniform that fits, and every rule."""
    rows, allocator = [], Allocator(trial, (0,))
    for budget in budgets:
        uniform = trial.uniform(bits=trial.best_uniform(budget).bits)
        reference = trial.kl(uniform)
        row: dict[str, Any] = {
            "budget": budget,
            "uniform bits": next(iter(uniform.values())).bits,
            "uniform stored": trial.stored_bits(uniform),
            "uniform KL": float(np.mean(reference)),
            "uniform by seed": figures(reference),
        }
        for rule, by_matrix in weights.items():
            settings, _ = allocator(by_matrix, budget)
            found = trial.kl(settings)
            row[f"{rule} stored"] = trial.stored_bits(settings)
            row[f"{rule} KL"] = float(np.mean(found))
            row[f"{rule} by seed"] = figures(found)
        print({k: v for k, v in row.items() if "KL" in k or k == "budget"}, flush=True)
        rows.append(row)
    return rows


def bias(trial: Trial, sizes: Sequence[float]) -> list[dict[str, Any]]:
    """Return what unbiased codes change at uniform sizes."""
    rows = []
    for bits in sizes:
        shrunk = trial.kl(trial.uniform(bits=bits, row_scale="least-squares"))
        plain = trial.kl(trial.uniform(bits=bits))
        rows.append(
            {
                "bits": bits,
                "least squares KL": float(np.mean(shrunk)),
                "least squares by seed": figures(shrunk),
                "unbiased KL": float(np.mean(plain)),
                "unbiased by seed": figures(plain),
            }
        )
        print(rows[-1], flush=True)
    return rows


def rank_choice(
    trial: Trial, weights: Mapping[str, float], sizes: Sequence[float]
) -> list[dict[str, Any]]:
    """Return what a choice of ranks changes, at the stored bits of uniform sizes."""
    rows = []
    allocators = {"rank 0": Allocator(trial, (0,)), "any rank": Allocator(trial, RANKS)}
    for bits in sizes:
        uniform = trial.uniform(bits=bits)
        row: dict[str, Any] = {"budget": trial.stored_bits(uniform)}
        row["uniform KL"] = float(np.mean(trial.kl(uniform)))
        for label, allocator in allocators.items():
            settings, objective = allocator(weights, row["budget"] + 1e-9)
            row[f"{label}: objective"] = objective
            row[f"{label}: KL"] = float(np.mean(trial.kl(settings)))
        row["mean rank"] = float(np.mean([config.rank for config in settings.values()]))
        print(row, flush=True)
        rows.append(row)
    return rows


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the default rule: at least as good as the uniform allocation at every budget."""
    return [
        {
            "target": f"{row['budget']:g} bits: mixed KL at most the best uniform's that fits",
            "measured": row["matrix KL"],
            "bound": row["uniform KL"],
            "met": row["matrix KL"] <= row["uniform KL"] and row["matrix stored"] <= row["budget"],
        }
        for row in rows
    ]


def main() -> None:
    """Measure all budgets and publish."""
    parser = support.parser(__doc__, "allocation")
    tiny_model.add_options(parser, questions=400)
    parser.set_defaults(calibration=96)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    budgets: Sequence[float] = BUDGETS
    sizes: Sequence[float] = (1.5, 2.0, 2.5, 3.0, 4.0)
    if arguments.quick:
        arguments.questions, arguments.calibration, arguments.seeds = 12, 4, 1
        budgets, sizes = (2.25,), (2.0,)
    begin = time.perf_counter()
    trial = Trial(Judge(arguments.model, arguments.questions), arguments.seeds, BASE)
    weights = all_weights(trial.judge, arguments.calibration)
    rows = compare(trial, budgets, weights)
    support.publish(
        "allocation",
        arguments.json,
        {
            "KL at every budget": rows,
            "Unbiased codes at uniform sizes": bias(trial, sizes),
            "Ranks, sensitivity matrix": rank_choice(trial, weights["matrix"], sizes),
            "Targets": verdicts(rows),
        },
        {
            "questions": arguments.questions,
            "calibration questions": arguments.calibration,
            "seconds_taken": time.perf_counter() - begin,
        },
    )


if __name__ == "__main__":
    main()

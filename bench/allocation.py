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
import torch

from bench import support, tiny_model
from bench.tiny_model import Judge
from examples.tiny_lmm.benchmark import calibration_questions
from llava_fa import CompressionConfig, MatrixSpec, compress_matrix
from llava_fa.allocate import Candidate, allocate
from llava_fa.error_model import CODE_SIZES, profile_matrix
from llava_fa.sensitivity import measured_weights, rule_weights

BUDGETS = tuple(np.arange(2.0, 4.51, 0.25).tolist())
SIZES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5)
RANKS = (0, 4, 8, 16)
BASE = CompressionConfig(odc="none")
Settings = dict[str, CompressionConfig]


class Trial:
    """Scores settings of all matrices, each matrix compressed once per setting and seed."""

    def __init__(self, judge: Judge, seeds: int) -> None:
        self.judge, self.seeds = judge, range(seeds)
        self._dense: dict[tuple[str, CompressionConfig], torch.Tensor] = {}

    def kl(self, settings: Settings) -> list[float]:
        """Return the KL divergence under every seed."""
        return [
            self.judge.score(
                {name: self._decoded(name, c.replace(seed=seed)) for name, c in settings.items()}
            ).kl
            for seed in self.seeds
        ]

    def _decoded(self, name: str, config: CompressionConfig) -> torch.Tensor:
        if (name, config) not in self._dense:
            matrix = compress_matrix(self.judge.weights[name], config.for_checkpoint())
            self._dense[name, config] = torch.as_tensor(matrix.dense())
        return self._dense[name, config]

    def uniform(self, **overrides: Any) -> Settings:
        """Return the same settings for every matrix."""
        return dict.fromkeys(self.judge.weights, BASE.replace(**overrides))

    def stored_bits(self, settings: Settings) -> float:
        """Return the stored bits per weight; without scales they follow from the shapes."""
        total = sum(self.spec(name, config).nbytes for name, config in settings.items())
        return 8 * total / self.judge.weight_count

    def spec(self, name: str, config: CompressionConfig) -> MatrixSpec:
        """Return how a matrix is stored."""
        rows, columns = self.judge.weights[name].shape
        return MatrixSpec(
            shape=(rows, columns),
            codec=config.codec,
            code_bits=config.code_bits,
            rank=config.rank,
            factor_bits=config.factor_bits,
            signs=config.signs,
            seed=config.seed,
            state_bits=config.stored_state_bits,
            channel_scale_in=False,
            channel_scale_out=False,
        )


def examples(judge: Judge, count: int) -> list[dict[str, Any]]:
    """Calibration questions as model inputs, 16 in a batch."""
    asked = calibration_questions(count)
    return [
        dict(
            judge.processor(
                images=[question.pil_image() for question in asked[begin : begin + 16]],
                text=[question.prompt for question in asked[begin : begin + 16]],
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
        )
        for begin in range(0, len(asked), 16)
    ]


class Allocator:
    """Allocates a budget over the judge's matrices under given sensitivity weights."""

    def __init__(self, trial: Trial, ranks: Sequence[int]) -> None:
        self._trial, weights = trial, trial.judge.weights
        profiles = {name: profile_matrix(weight, BASE, ranks) for name, weight in weights.items()}
        self._errors = {
            name: {
                config: profile.relative_error(config)
                for bits in CODE_SIZES
                for config in (BASE.replace(bits=bits, rank=rank) for rank in profile.tail)
            }
            for name, profile in profiles.items()
        }

    def __call__(self, weights: Mapping[str, float], budget: float) -> tuple[Settings, float]:
        """Return the settings and the sum of weighted errors for so many bits per weight."""
        candidates = {
            name: {
                Candidate(
                    config.bits,
                    config.rank,
                    self._trial.spec(name, config).nbytes,
                    weights[name] * error,
                ): config
                for config, error in errors.items()
            }
            for name, errors in self._errors.items()
        }
        limit = int(budget * self._trial.judge.weight_count / 8)
        chosen, _ = allocate({name: list(c) for name, c in candidates.items()}, limit)
        settings = {name: candidates[name][candidate] for name, candidate in chosen.items()}
        return settings, sum(candidate.error for candidate in chosen.values())


def all_weights(judge: Judge, questions: int) -> dict[str, dict[str, float]]:
    """Return the sensitivity weights of every rule."""
    shapes = {name: (len(weight), weight.shape[1]) for name, weight in judge.weights.items()}
    found = {rule: rule_weights(rule, shapes) for rule in ("matrix", "size")}
    probes = dict.fromkeys(judge.weights, BASE)
    found["measured"] = measured_weights(judge.model, examples(judge, questions), probes)
    return found


def _figures(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def compare(
    trial: Trial, budgets: Sequence[float], weights: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return a row per budget: the best uniform that fits, and every rule."""
    rows, allocator = [], Allocator(trial, (0,))
    uniform = {trial.stored_bits(trial.uniform(bits=bits)): bits for bits in SIZES}
    for budget in budgets:
        stored = max(stored for stored in uniform if stored <= budget)
        reference = trial.kl(trial.uniform(bits=uniform[stored]))
        row: dict[str, Any] = {
            "budget": budget,
            "uniform bits": uniform[stored],
            "uniform stored": stored,
            "uniform KL": float(np.mean(reference)),
            "uniform by seed": _figures(reference),
        }
        for rule, by_matrix in weights.items():
            settings, _ = allocator(by_matrix, budget)
            figures = trial.kl(settings)
            row[f"{rule} stored"] = trial.stored_bits(settings)
            row[f"{rule} KL"] = float(np.mean(figures))
            row[f"{rule} by seed"] = _figures(figures)
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
                "least squares by seed": _figures(shrunk),
                "unbiased KL": float(np.mean(plain)),
                "unbiased by seed": _figures(plain),
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
    trial = Trial(Judge(arguments.model, arguments.questions), arguments.seeds)
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

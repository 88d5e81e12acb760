"""Allocations over the tiny model's matrices, and what they do to its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.tiny_model import Judge
from examples.tiny_lmm.benchmark import calibration_questions
from llava_fa import CompressionConfig, MatrixSpec, compress_matrix
from llava_fa.allocate import Candidate, allocate
from llava_fa.error_model import CODE_SIZES, MatrixProfile, profile_matrix
from llava_fa.stages import diagonal_scales

Settings = dict[str, CompressionConfig]


class Trial:
    """Scores settings of all matrices, each matrix compressed once per setting and seed.

    Parameters
    ----------
    judge : Judge
    seeds : int
        How many seeds of the random signs.
    base : CompressionConfig
        What the settings share.
    moments : mapping of str to Tensor, optional
        E[x x^T] of every matrix's input, to calibrate with.
    """

    def __init__(
        self,
        judge: Judge,
        seeds: int,
        base: CompressionConfig,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.judge, self.seeds, self.base = judge, range(seeds), base
        self.moments = {name: moment.float() for name, moment in (moments or {}).items()}
        self.scaled = {name: self._scales(name) for name in judge.weights}
        self._dense: dict[tuple[str, CompressionConfig], Tensor] = {}

    def kl(self, settings: Settings) -> list[float]:
        """Return the KL divergence under every seed."""
        return [
            self.judge.score(
                {name: self.decoded(name, c.replace(seed=seed)) for name, c in settings.items()}
            ).kl
            for seed in self.seeds
        ]

    def decoded(self, name: str, config: CompressionConfig) -> Tensor:
        """Return what a matrix decodes to."""
        if (name, config) not in self._dense:
            matrix = compress_matrix(
                self.judge.weights[name],
                config.for_checkpoint(),
                input_second_moment=self.moments.get(name),
            )
            self._dense[name, config] = torch.as_tensor(matrix.dense())
        return self._dense[name, config]

    def uniform(self, **overrides: Any) -> Settings:
        """Return the same settings for every matrix."""
        return dict.fromkeys(self.judge.weights, self.base.replace(**overrides))

    def sizes(self) -> list[CompressionConfig]:
        """Return the base at every code size that its codec has."""
        found = []
        for bits in CODE_SIZES:
            try:
                found.append(self.base.replace(bits=bits))
            except ValueError:  # beyond the trellis
                continue
        return found

    def stored_bits(self, settings: Settings) -> float:
        """Return the stored bits per weight of all matrices together."""
        total = sum(self.spec(name, config).nbytes for name, config in settings.items())
        return 8 * total / self.judge.weight_count

    def best_uniform(self, budget: float) -> CompressionConfig:
        """Return the largest setting that fits a budget of bits per weight if all share it."""
        fitting = [
            config
            for config in self.sizes()
            if self.stored_bits(dict.fromkeys(self.judge.weights, config)) <= budget
        ]
        return fitting[-1]

    def profile(self, name: str, ranks: Sequence[int], *, blind: bool = False) -> MatrixProfile:
        """Return what predicts the errors of a matrix; ``blind`` does not look at the moments."""
        moment = None if blind else self.moments.get(name)
        calibrated = bool(self.moments)
        return profile_matrix(self.judge.weights[name], self.base, ranks, calibrated, moment)

    def spec(self, name: str, config: CompressionConfig) -> MatrixSpec:
        """Return how a matrix is stored."""
        rows, columns = self.judge.weights[name].shape
        scale_in, scale_out = self.scaled[name]
        return MatrixSpec(
            shape=(rows, columns),
            codec=config.codec,
            code_bits=config.code_bits,
            rank=config.rank,
            factor_bits=config.factor_bits,
            signs=config.signs,
            seed=config.seed,
            state_bits=config.stored_state_bits,
            channel_scale_in=scale_in,
            channel_scale_out=scale_out,
        )

    def _scales(self, name: str) -> tuple[bool, bool]:
        if self.base.odc != "spatial":
            return False, False
        known = self.moments.get(name) if self.base.calibration == "diagonal" else None
        found = diagonal_scales(self.judge.weights[name], known)
        return found[0] is not None, found[1] is not None


def _unit(profile: MatrixProfile, config: CompressionConfig, counted: str) -> float:
    if counted == "outputs" or not profile.of_output:
        return 1.0
    return profile.noise_gain if counted == "fed back" else profile.unit(config)


class Allocator:
    """Allocates a budget over the judge's matrices under given sensitivity weights.

    ``blind`` to the moments, it counts errors of weights. Otherwise ``counted`` says what: the
    "default"; "fed back", the distortion that codes have under feedback; "outputs", errors relative
    to all of an output.
    """

    def __init__(
        self,
        trial: Trial,
        ranks: Sequence[int],
        *,
        blind: bool = False,
        counted: str = "default",
    ) -> None:
        self._trial = trial
        self.profiles = {
            name: trial.profile(name, ranks, blind=blind) for name in trial.judge.weights
        }
        self._errors = {
            name: {
                config: profile.relative_error(config) / _unit(profile, config, counted)
                for size in trial.sizes()
                for config in (size.replace(rank=rank) for rank in profile.tail)
            }
            for name, profile in self.profiles.items()
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


def figures(values: Sequence[float]) -> str:
    """Several figures in one cell."""
    return ", ".join(f"{value:.4g}" for value in values)

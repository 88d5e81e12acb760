"""The rows of the comparison: a name, a width, and how weights become other weights and bits.

A row is made by ``per_matrix`` from a function of (module name, weight, E[x x^T]) that returns the
decoded weight and all stored bits. A method that decides over the whole model (an allocation, a
peer that runs on its own) gives a function of all weights instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import llava_fa
from bench import activation_aware, baselines, gptq, group_grid, low_rank_codes
from bench.baselines import Baseline
from bench.tiny_model import Candidate
from llava_fa import CompressionConfig, compress_matrix

Tensors = Mapping[str, Tensor]
Code = Callable[[str, Tensor, Tensor], Baseline]

NO_SCALES = "ring, no data, no scales"
NO_DATA = "ring, no data"
CALIBRATED = "ring + ODC"
FED_BACK = "ring + feedback"
TRELLIS_NO_DATA = "trellis, no data"
TRELLIS = "trellis + feedback"
TRELLIS_NO_SCALES = "trellis + feedback, no scales"
ROUNDED = "round to nearest g64"
NF4 = "NF4 g64"
AWQ = "AWQ-like g64, alpha 1/2"
AWQ_SEARCHED = "AWQ-like g64, alpha by search"
GPTQ = "GPTQ g64"
STRONG_GPTQ = "GPTQ g64 strong"
FED_BACK_GPTQ = "GPTQ g64 strong, scales by fed-back error"
ASVD = "ASVD+Q"
SVD_LLM = "SVD-LLM+Q"
LQER = "LQER+Q"
LQ_LORA = "LQ-LoRA-like"

BENCH_FILES = tuple(
    Path(module.__file__ or "")
    for module in (activation_aware, baselines, gptq, group_grid, low_rank_codes)
)


@dataclass(frozen=True)
class Method:
    """One row: one method at one width.

    Attributes
    ----------
    name : str
        The method; rows of equal name form a line of the chart.
    bits : float
        Nominal width.
    compress : callable
        (weights, second moments E[x x^T] by module, seed) to a ``Candidate``.
    seeded : bool
        Whether the seed makes a difference.
    settings : mapping
        What distinguishes this row, as JSON types; part of the key of kept results.
    code : sequence of Path
        Files whose change makes kept results void.
    """

    name: str
    bits: float
    compress: Callable[[Tensors, Tensors, int], Candidate]
    seeded: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    code: Sequence[Path] = ()


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be measured here, and why."""

    name: str
    bits: float
    reason: str


class UnavailableError(RuntimeError):
    """A method turns out not to run here; the message says why."""


def per_matrix(code: Code) -> Callable[[Tensors, Tensors, int], Candidate]:
    """Apply a function of (name, weight, second moment) to every matrix."""

    def compress(weights: Tensors, moments: Tensors, _seed: int) -> Candidate:
        coded = {name: code(name, weight, moments[name]) for name, weight in weights.items()}
        return Candidate(
            {name: result.dense for name, result in coded.items()},
            sum(result.stored_bits for result in coded.values()),
        )

    return compress


def library_files() -> list[Path]:
    """Files of the installed library, compiled core included."""
    folder = Path(llava_fa.__file__).parent
    return [path for path in folder.iterdir() if path.suffix == ".py" or ".so" in path.name]


def library(name: str, bits: float, data: str = "", **settings: Any) -> Method | Skipped:
    """Compress with llava-fa; ``data`` is "", "diagonal" or "full" moments.

    Options that the installed library does not know give a ``Skipped`` row.
    """
    options = {"bits": bits, **settings}
    try:
        config = CompressionConfig.from_dict(options).for_checkpoint()
    except ValueError as error:
        return Skipped(name, bits, f"the installed llava_fa refuses these options: {error}")

    def compress(weights: Tensors, moments: Tensors, seed: int) -> Candidate:
        dense, stored = {}, 0
        for module, weight in weights.items():
            full = moments[module] if data else None
            moment = full.diagonal() if full is not None and data == "diagonal" else full
            matrix = compress_matrix(
                weight,
                config.replace(seed=seed),
                input_second_moment=None if moment is None else moment.float().contiguous(),
            )
            dense[module], stored = matrix.dense(), stored + 8 * matrix.nbytes
        return Candidate(dense, stored)

    return Method(name, bits, compress, True, {**options, "data": data}, library_files())


def ours(widths: Iterable[float]) -> list[Method | Skipped]:
    """Every configuration of llava-fa worth comparing."""
    rows: list[Method | Skipped] = []
    full = {"data": "full", "calibration": "hessian"}
    for bits in widths:
        rows += [
            library(NO_SCALES, bits, odc="none"),
            library(NO_DATA, bits),
            library(CALIBRATED, bits, data="diagonal"),
            library(FED_BACK, bits, **full),
            library(TRELLIS_NO_DATA, bits, codec="trellis"),
            library(TRELLIS, bits, codec="trellis", **full),
            library(TRELLIS_NO_SCALES, bits, codec="trellis", odc="none", **full),
        ]
    return rows


def _bench(name: str, bits: int, code: Code) -> Method:
    return Method(name, float(bits), per_matrix(code), code=BENCH_FILES)


def rounding(bits: int) -> list[Method]:
    """Return methods that fix codes without error feedback."""
    rows = [
        _bench(ROUNDED, bits, lambda _, w, h: baselines.round_to_nearest(w, bits)),
        _bench(AWQ, bits, lambda _, w, h: activation_aware.activation_aware(w, h, bits)),
        _bench(
            AWQ_SEARCHED,
            bits,
            lambda _, w, h: activation_aware.searched_activation_aware(w, h, bits),
        ),
    ]
    if bits == 4:
        rows.append(_bench(NF4, bits, lambda _, w, h: baselines.normal_float_4(w)))
    return rows


def error_feedback(bits: int) -> list[Method]:
    """GPTQ: plain, with all that users can switch on, and with a better search for scales."""
    kinds = {
        GPTQ: gptq.GptqSettings(bits),
        STRONG_GPTQ: gptq.strong(bits),
        FED_BACK_GPTQ: gptq.GptqSettings(bits, order="activation", search="feedback"),
    }

    def row(name: str, settings: gptq.GptqSettings) -> Method:
        return _bench(name, bits, lambda _, w, h: gptq.gptq(w, h, settings))

    return [row(name, settings) for name, settings in kinds.items()]


def low_rank(bits: int) -> list[Method]:
    """Low rank and codes at the stored bits of round-to-nearest in groups of 64."""
    kinds = {
        ASVD: low_rank_codes.asvd,
        SVD_LLM: low_rank_codes.svd_llm,
        LQER: low_rank_codes.error_low_rank,
        LQ_LORA: low_rank_codes.joint_low_rank,
    }

    def row(name: str, code: Callable[[Tensor, Tensor, int], Baseline]) -> Method:
        def matched(_: str, weight: Tensor, moment: Tensor) -> Baseline:
            return code(weight, moment, group_grid.group_bits(*weight.shape, bits, 64))

        return _bench(name, bits, matched)

    return [row(name, code) for name, code in kinds.items()]


def own_baselines(widths: Iterable[int]) -> list[Method | Skipped]:
    """All baselines that the benches implement themselves."""
    return [
        row
        for bits in widths
        for kind in (rounding, error_feedback, low_rank)
        for row in kind(bits)
    ]

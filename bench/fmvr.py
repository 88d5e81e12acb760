"""What does visual restoration keep at few visual tokens, against plain pooling and its ablations?

The tiny model is trained with each variant of the pyramid, the same images and steps for all, under
several seeds of the training images, and asked the held-out benchmark at every number of visual
tokens. Trained tensors and scores are kept in ``bench/cache``, so a run that was stopped continues.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import support, tiny_model
from bench.fmvr_charts import draw_accuracy, draw_parts
from bench.fmvr_scores import Examiner, elastic_model
from bench.fmvr_timing import TEXT_TOKENS
from bench.fmvr_training import POOLS, Schedule
from bench.score_store import CACHE, Store
from examples.tiny_lmm.architecture import PATCHES_PER_SIDE
from llava_fa.cost import kv_cache_bytes, prefill_flops, restoration_flops
from llava_fa.fmvr import PyramidShape

Row = dict[str, Any]
Hits = dict[tuple[str, int], npt.NDArray[np.float64]]
NAMES = {
    "both": "FMVR",
    "none": "plain pooling",
    "average": "average branch alone",
    "max": "max branch alone",
    "local_average": "3 x 3 local average",
}
SCALES = PyramidShape(POOLS, PATCHES_PER_SIDE).scales
TWO_SIDED = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's 97.5 % quantile by the number of seeds."""


def ask(examiner: Examiner, variants: Sequence[str], seeds: int) -> Hits:
    """Hits (seeds, questions) of every variant at every scale; trains what is not kept."""
    for seed in range(seeds):  # all variants of a seed first, so that a stopped run can be read
        for variant in variants:
            examiner.trained(variant, seed)
    return {
        (variant, scale): np.stack([examiner.hits(variant, seed, scale) for seed in range(seeds)])
        for variant in variants
        for scale in SCALES
    }


def accuracy_rows(examiner: Examiner, hits: Hits) -> list[Row]:
    """A row per variant and scale."""
    rows = []
    for (variant, scale), found in hits.items():
        low, high = examiner.interval(found)
        means = 100 * found.mean(axis=1)
        rows.append(
            {
                "variant": NAMES[variant],
                "visual tokens": scale,
                "accuracy %": float(means.mean()),
                "low %": 100 * low,
                "high %": 100 * high,
                "by seed %": ", ".join(f"{mean:.1f}" for mean in means),
                "of its full scale %": _share(found.mean(), hits[variant, SCALES[0]].mean()),
            }
        )
    return rows


def difference_rows(examiner: Examiner, hits: Hits) -> list[Row]:
    """Points of accuracy that FMVR gains over every other variant, paired by seed and question."""
    rows = []
    for (variant, scale), other in hits.items():
        if variant == "both":
            continue
        gained = 100 * (hits["both", scale] - other)
        low, high = examiner.interval(gained)
        by_seed = gained.mean(axis=1)
        rows.append(
            {
                "against": NAMES[variant],
                "visual tokens": scale,
                "points gained": float(by_seed.mean()),
                "images' low": low,
                "images' high": high,
                "seeds' half width": _half_width(by_seed),
                "by seed": ", ".join(f"{value:+.1f}" for value in by_seed),
            }
        )
    return rows


def _share(part: float, whole: float) -> float:
    """Per cent of the whole; nan if nothing was right."""
    return 100 * float(part / whole) if whole else math.nan


def _half_width(values: npt.NDArray[np.float64]) -> float:
    """Half the 95 % interval of the mean over seeds, by Student's distribution."""
    count = len(values)
    if count not in TWO_SIDED:
        return math.nan
    return float(TWO_SIDED[count] * values.std(ddof=1) / math.sqrt(count))


def cost_rows(config: Any, text_tokens: int) -> list[Row]:
    """What a question costs the tiny model at every scale."""
    width = config.text_config.hidden_size
    full = prefill_flops(config, text_tokens + SCALES[0])
    rows = []
    for scale in SCALES:
        flops = prefill_flops(config, text_tokens + scale)
        restored = restoration_flops(width, POOLS, PATCHES_PER_SIDE, scale)
        rows.append(
            {
                "visual tokens": scale,
                "prefill GFLOPs": flops / 1e9,
                "times fewer": full / flops,
                "restoration, share": restored / flops,
                "KV cache, kB (16 bits)": kv_cache_bytes(config, text_tokens + scale) / 1e3,
            }
        )
    return rows


def large_rows() -> list[Row]:
    """The same for LLaVA-1.5-7B: language model alone, 34 tokens of text."""
    from transformers import LlamaConfig

    vicuna, text = LlamaConfig(vocab_size=32064), TEXT_TOKENS
    full = prefill_flops(vicuna, text + 576)
    rows = []
    for scale in (576, 144, 36, 9, 1):
        flops = prefill_flops(vicuna, text + scale)
        restored = restoration_flops(4096, (2, 2, 2, 3), 24, scale)
        rows.append(
            {
                "visual tokens": scale,
                "prefill TFLOPs": flops / 1e12,
                "times fewer": full / flops,
                "less %": 100 * (1 - flops / full),
                "restoration, share": f"{restored / flops:.1e}",
                "KV cache, MB (16 bits)": kv_cache_bytes(vicuna, text + scale) / 1e6,
            }
        )
    return rows


def targets(accuracy: Sequence[Row], differences: Sequence[Row], untrained: float) -> list[Row]:
    """The figures to reach, with verdicts."""
    plain = [row for row in differences if row["against"] == NAMES["none"]]
    (few,) = (
        row for row in accuracy if row["variant"] == NAMES["both"] and row["visual tokens"] == 36
    )
    kept, of_before = few["of its full scale %"], _share(few["accuracy %"], untrained)
    large = large_rows()
    rows = [
        support.target("FMVR at 36 of 144 tokens, % of its full scale", kept, 97, True),
        support.target("the same, % of the model before training", of_before, 97, True),
    ]
    for row in plain:
        scale = row["visual tokens"]
        rows.append(
            support.target(
                f"points over plain pooling at {scale}", row["points gained"], 0.0, at_least=True
            )
        )
    for row in plain[-2:]:
        rows.append(
            support.target(
                f"the same at {row['visual tokens']}, less the seeds' half width",
                row["points gained"] - row["seeds' half width"],
                0.0,
                at_least=True,
            )
        )
    rows.append(support.target("LLaVA-1.5-7B at 36, % less", large[2]["less %"], 88.5, True))
    return rows


def main() -> None:
    """Train, ask, measure and publish."""
    defaults = Schedule()
    parser = support.parser(__doc__, "fmvr")
    tiny_model.add_options(parser, questions=1000)
    parser.add_argument("--seeds", type=int, default=3, help="of the training images")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of every training")
    arguments = parser.parse_args()
    variants = list(NAMES)
    schedule = dataclasses.replace(defaults, steps=arguments.steps)
    if arguments.quick:
        arguments.questions, arguments.seeds = 6, 2
        variants = ["both", "none"]
        schedule = dataclasses.replace(defaults, steps=1, images=1)
    begin = time.perf_counter()
    store = Store(None if arguments.quick else CACHE)
    examiner = Examiner(arguments.model, arguments.questions, schedule, store)
    hits = ask(examiner, variants, arguments.seeds)
    untrained = 100 * float(examiner.untrained_hits().mean())
    accuracy, differences = accuracy_rows(examiner, hits), difference_rows(examiner, hits)
    example = elastic_model(arguments.model, "both", examiner.trained("both", 0))
    draw(arguments.json, accuracy, untrained, example, arguments.model)
    support.publish(
        "fmvr",
        arguments.json,
        {
            "Accuracy": accuracy,
            "FMVR against the others": differences,
            "Cost of a question, tiny model": cost_rows(example.config, 10),
            "Cost of a question, LLaVA-1.5-7B": large_rows(),
            "Targets": targets(accuracy, differences, untrained),
        },
        {
            "questions": arguments.questions,
            "seeds": arguments.seeds,
            "schedule": dataclasses.asdict(schedule),
            "accuracy % before training, all tokens": untrained,
            "seconds_taken": time.perf_counter() - begin,
        },
    )


def draw(path: Path, accuracy: Sequence[Row], untrained: float, model: Any, folder: Path) -> None:
    """Write the charts beside the figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_accuracy(accuracy, untrained, path.with_suffix(".png"))
    draw_parts(model, folder, path.with_name(f"{path.stem}_parts.png"))


if __name__ == "__main__":
    main()

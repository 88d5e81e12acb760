"""Does the time to the first token fall with the visual tokens as the FLOPs do?

On a model large enough for products to matter, dense in float32 and with the language model's
layers packed. Weights and codes are random, as time does not depend on them. ``generate`` is asked
for one token, from pixels; scales take turns, and the median counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from bench import support
from bench.decode_speed import packed_like
from bench.generation import replace_linear
from llava_fa.cost import kv_cache_bytes, prefill_flops, vision_flops
from llava_fa.fmvr import attach_fmvr

TEXT_TOKENS = 34
CODES: tuple[tuple[str, float], ...] = (("ring", 4), ("trellis", 2))
DENSE = "dense float32"
Row = dict[str, Any]


def random_llava(*, small: bool) -> Any:
    """A LLaVA model with a grid of 24 × 24 tokens: 0.4 billion weights, or far fewer."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=64 if small else 256,
        intermediate_size=128 if small else 1024,
        num_hidden_layers=2 if small else 4,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
        projection_dim=64,
    )
    text = LlamaConfig(
        hidden_size=64 if small else 2048,
        intermediate_size=128 if small else 5632,
        num_hidden_layers=2 if small else 8,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=1000,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=999)
    torch.manual_seed(0)
    return attach_fmvr(LlavaForConditionalGeneration(config).eval())


def rows(weights: str, model: Any, repeats: int) -> list[Row]:
    """A row per scale: FLOPs by the model of costs, seconds measured, both relative to full."""
    scales = model.fmvr.shape.scales
    seconds = support.interleaved_seconds(
        {str(scale): _first_token(model, scale) for scale in scales}, repeats
    )
    medians = [statistics.median(seconds[str(scale)]) for scale in scales]
    flops = [
        prefill_flops(model.config, TEXT_TOKENS + scale) + vision_flops(model.config)
        for scale in scales
    ]
    return [
        {
            "weights": weights,
            "visual tokens": scale,
            "GFLOPs": count / 1e9,
            "KV cache, MB": kv_cache_bytes(model.config, TEXT_TOKENS + scale, 4) / 1e6,
            "seconds": second,
            "slowest": max(seconds[str(scale)]),
            "times fewer FLOPs": flops[0] / count,
            "times faster": medians[0] / second,
        }
        for scale, count, second in zip(scales, flops, medians, strict=True)
    ]


def _first_token(model: Any, scale: int) -> Any:
    image = model.config.image_token_id
    text = torch.arange(2, 2 + TEXT_TOKENS)
    ids = torch.cat([text[:1], torch.full((scale,), image), text[1:]])[None]
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(1))

    def call() -> None:
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                visual_tokens=scale,
                max_new_tokens=1,
                do_sample=False,
            )

    return call


def all_rows(*, small: bool, repeats: int) -> list[Row]:
    """The rows of dense and packed weights."""
    found = rows(DENSE, random_llava(small=small), repeats)
    for codec, bits in CODES:
        model = random_llava(small=small)
        replace_linear(model.model.language_model.layers, partial(packed_like, codec, bits))
        found += rows(f"{codec} {bits:g}", model, repeats)
    return found


def targets(timing: Sequence[Row]) -> list[Row]:
    """Judge every scale but the full one, which the others are measured by."""
    return [
        support.target(
            f"{row['weights']}, {row['visual tokens']} tokens: share of the FLOPs' gain",
            row["times faster"] / row["times fewer FLOPs"],
            0.75,
            at_least=True,
        )
        for row in timing
        if row["times fewer FLOPs"] != 1
    ]


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "fmvr_timing")
    parser.add_argument("--repeats", type=int, default=9, help="of every timing")
    arguments = parser.parse_args()
    repeats = 2 if arguments.quick else arguments.repeats
    timing = all_rows(small=arguments.quick, repeats=repeats)
    judged = targets(timing)
    if arguments.quick:
        for row in judged:
            row["met"] = None  # a smoke run's sizes are not the target's
    tables = {"Time to the first token, random model": timing, "Targets": judged}
    support.publish("fmvr_timing", arguments.json, tables, {"repeats": repeats})


if __name__ == "__main__":
    main()

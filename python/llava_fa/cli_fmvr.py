"""The subcommand ``fmvr``, and what ``generate`` takes for models with FMVR."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .cli_options import adder, settings_of
from .fmvr.restoration import VARIANTS
from .fmvr.training_options import TRAINED, FmvrTraining

_DEFAULTS = FmvrTraining()
_BUDGET = ("visual_tokens", "max_prefill_tflops", "max_kv_bytes")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the scale, or of a budget."""
    group = parser.add_argument_group(
        "models with FMVR (at most one of these)"
    ).add_mutually_exclusive_group()
    group.add_argument("--visual-tokens", type=int, metavar="N", help="tokens for the image")
    group.add_argument(
        "--max-prefill-tflops", type=float, metavar="X", help="the most that fit this prefill"
    )
    group.add_argument("--max-kv-bytes", metavar="SIZE", help="the most that fit this KV cache")


def budget_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of it."""
    given = {name: getattr(arguments, name) for name in _BUDGET}
    return {name: value for name, value in given.items() if value is not None}


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add folders, examples and how to train."""
    parser.add_argument("model", help="a LLaVA model: a folder or a hub id")
    parser.add_argument("output", help="folder to write")
    parser.add_argument(
        "--data", required=True, metavar="FILE.json", help="conversations in LLaVA's format"
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of their images")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--train", choices=TRAINED, default=_DEFAULTS.train, help="what learns (%(default)s)"
    )
    group.add_argument(
        "--scales", type=int, nargs="+", metavar="N", help="numbers of visual tokens; default: all"
    )
    group.add_argument("--variant", choices=VARIANTS, default=_DEFAULTS.variant)
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=_DEFAULTS.dtype, help="of the weights"
    )
    group.add_argument("--steps", type=int, help="optimizer steps; default: all epochs")
    _add_numbers(group)
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint in OUTPUT")
    parser.add_argument("--no-resume", action="store_true", help="start an interrupted run anew")


def _add_numbers(group: Any) -> None:
    add = adder(group, _DEFAULTS)
    add("--distillation", float, "weight of the divergence from all visual tokens' answers")
    add("--epochs", float, "passes over the examples")
    add("--batch-size", int, "examples per device and pass")
    add("--accumulation", int, "passes per step")
    add("--learning-rate", float, "of the model")
    add("--pyramid-learning-rate", float, "of the pyramid")
    add("--save-steps", int, "steps between states that a run continues from")
    add("--seed", int, "of the order of the examples")


def run_training(arguments: argparse.Namespace) -> int:
    """Train and print what it did."""
    from .fmvr.training import train_fmvr

    given = settings_of(FmvrTraining, arguments)
    if arguments.scales:
        given["scales"] = tuple(arguments.scales)
    options = FmvrTraining(**given)
    report = train_fmvr(
        arguments.model,
        arguments.output,
        arguments.data,
        arguments.images,
        options,
        resume=not arguments.no_resume,
        overwrite=arguments.overwrite,
        progress=not arguments.no_progress,
    )
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
        print(report.to_json() if arguments.json else report.summary())
    return 0

"""The subcommand ``refine``."""

from __future__ import annotations

import argparse

from .cli_options import adder, settings_of
from .distillation import RefinementOptions
from .distillation_targets import POSITIONS

_DEFAULTS = RefinementOptions()


def add_refine_options(parser: argparse.ArgumentParser) -> None:
    """Add folders, examples and how to train."""
    parser.add_argument("packed", help="compressed folder")
    parser.add_argument("dense", help="the checkpoint it was made from: a folder or a hub id")
    parser.add_argument("output", help="folder to write; same tensors and codes, other scales")
    parser.add_argument(
        "--calib", required=True, metavar="FILE.jsonl", help='lines of {"image": ..., "text": ...}'
    )
    parser.add_argument("--calib-samples", type=int, default=128, metavar="N")
    group = parser.add_argument_group("training")
    add = adder(group, _DEFAULTS)
    add("--steps", int, "optimizer steps")
    add("--learning-rate", float, "of AdamW on logarithms of scales; falls along a cosine")
    add("--batch-size", int, "examples per step")
    add("--weight-decay", float, "draws values back to where they started")
    add("--held-out", float, "share of the examples, the last ones, that choose the best step")
    add("--seed", int, "of the order of the examples")
    group.add_argument(
        "--positions",
        choices=POSITIONS,
        default=_DEFAULTS.positions,
        help="tokens whose prediction is compared: all text, or the last of every example",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="that both models compute in",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint in OUTPUT")


def run_refine(arguments: argparse.Namespace) -> int:
    """Refine and print what it did."""
    from .refine import refine_checkpoint

    options = RefinementOptions(**settings_of(RefinementOptions, arguments))
    report = refine_checkpoint(
        arguments.packed,
        arguments.dense,
        arguments.output,
        arguments.calib,
        options,
        calibration_samples=arguments.calib_samples,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
        progress=not arguments.no_progress,
    )
    print(report.to_json() if arguments.json else report.summary())
    return 0

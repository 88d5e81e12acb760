"""The subcommand ``llava-fa plan``, and the options that choose sizes for ``compress`` too."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from .sensitivity import DEFAULT_SENSITIVITY, SENSITIVITIES


def add_target(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the options of a size target."""
    group = parser.add_argument_group("size target: code bits are chosen for every matrix")
    target = group.add_mutually_exclusive_group(required=required)
    target.add_argument(
        "--target-bits", type=float, metavar="BITS", help="average of stored bits per weight"
    )
    target.add_argument(
        "--target-size", metavar="SIZE", help="of all weight files, e.g. 3.2GB; never exceeded"
    )
    group.add_argument(
        "--sensitivity",
        choices=SENSITIVITIES,
        default=DEFAULT_SENSITIVITY,
        help="how errors of different matrices are weighted; measured needs --calib",
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``plan`` takes beside the settings and inputs that it shares with ``compress``."""
    parser.add_argument("--output", default="plan.json", metavar="FILE.json", help="plan to write")
    parser.add_argument("--chart", metavar="FILE.png", help="draw the plan too (needs matplotlib)")
    parser.add_argument(
        "--ranks", type=_ranks, metavar="R,R,…", help="ranks to choose from, e.g. 0,8,16"
    )


def _ranks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers like 0,8,16, got {text!r}") from None


def contradiction(arguments: argparse.Namespace, settings: Sequence[str]) -> str | None:
    """Say which options of ``compress`` cannot stand together; ``settings`` are those given."""
    targeted = arguments.target_bits is not None or arguments.target_size is not None
    if targeted and arguments.bits is not None:
        return "--bits contradicts a size target, which chooses the bits: give one of them"
    given = [*settings, *(["recipe"] if arguments.recipe else [])]
    if arguments.plan and (targeted or given):
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given) or "a size target"
        return f"--plan holds all settings, so {named} cannot stand beside it"
    return None


def run_plan(arguments: argparse.Namespace, config: Any) -> int:
    """Plan, save, print."""
    from .plan_chart import save_chart, text_chart
    from .planning import plan_checkpoint

    plan = plan_checkpoint(
        arguments.source,
        config,
        target_bits=arguments.target_bits,
        target_size=arguments.target_size,
        recipe=arguments.recipe,
        ranks=arguments.ranks,
        sensitivity=arguments.sensitivity,
        calibration_data=arguments.calib,
        calibration_samples=arguments.calib_samples,
        calibration_memory=arguments.calibration_memory,
        load_calibration=arguments.load_calibration,
        on_nonfinite=arguments.on_nonfinite,
        max_shard_size=arguments.max_shard_size,
        calibration_device=arguments.calibration_device or "cpu",
        progress=not arguments.no_progress,
    )
    plan.save(arguments.output)
    if arguments.chart:
        save_chart(plan, arguments.chart)
    if arguments.json:
        print(json.dumps(plan.to_dict(), indent=2))
    else:
        print(f"{plan.summary_table()}\n\n{text_chart(plan)}\n\nsaved as {arguments.output}")
    return 0

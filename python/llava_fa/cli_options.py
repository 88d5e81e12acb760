"""Groups of options that several subcommands of ``llava-fa`` share; parsing only."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from .config import CompressionConfig

_DEFAULTS = CompressionConfig()


def settings_of(kind: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of the fields of a dataclass, by the arguments of their names."""
    names = (field.name for field in dataclasses.fields(kind))
    given = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def adder(group: Any, defaults: Any) -> Callable[[str, type, str], None]:
    """Return what adds an option of one value, whose default is the field of its name."""

    def add(option: str, kind: type, text: str) -> None:
        default = getattr(defaults, option.strip("-").replace("-", "_"))
        group.add_argument(option, type=kind, default=default, help=f"{text} (default {default})")

    return add


def add_config(parser: argparse.ArgumentParser, *, bits: bool = True) -> None:
    """Add the settings; without a default, so that a given one is known from a left-out one."""
    group = parser.add_argument_group("settings of every matrix (a recipe can override them)")

    def add(option: str, kind: type, text: str) -> None:
        default = getattr(_DEFAULTS, option.strip("-").replace("-", "_"))
        group.add_argument(option, type=kind, help=f"{text} (default {default})")

    if bits:
        add("--bits", float, "code bits per weight, 1 to 5 in halves")
    add("--codec", str, "ring, trellis, product or uniform")
    add("--rank", int, "complex rank of L1 L2")
    add("--factor-bits", int, "bits of the factors")
    add("--odc", str, "spatial, spectral or none")
    add(
        "--calibration",
        str,
        "what examples are used for: hessian (full second moments) or diagonal",
    )
    add("--state-bits", int, "bits of a trellis state, 8 to 16")
    add("--row-scale", str, "auto, least-squares or unbiased")
    add("--seed", int, "of the random signs")
    group.add_argument(
        "--no-signs",
        dest="signs",
        action="store_false",
        default=None,
        help="no random signs (the paper's form)",
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add what planning and compressing both look at."""
    parser.add_argument("--recipe", metavar="FILE.yaml", help="per-layer rules, first match wins")
    parser.add_argument(
        "--calib", metavar="FILE.jsonl", help='lines of {"image": ..., "text": ...}'
    )
    parser.add_argument("--calib-samples", type=int, default=128, metavar="N")
    parser.add_argument(
        "--calibration-memory",
        default="4GB",
        metavar="SIZE",
        help="for second moments beside the model; less takes more forward passes",
    )
    parser.add_argument(
        "--calibration-device",
        metavar="DEVICE",
        help="where the dense model runs: cpu, cuda, cuda:1 (default: --device, or cpu)",
    )
    parser.add_argument(
        "--load-calibration", metavar="FILE", help="second moments, instead of --calib"
    )
    parser.add_argument(
        "--on-nonfinite",
        choices=("error", "skip"),
        default="error",
        help="a weight with NaN or Inf: stop, or keep it dense",
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE")


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add how compressing calibrates beside."""
    order = parser.add_mutually_exclusive_group()
    order.add_argument(
        "--one-pass",
        dest="calibration_order",
        action="store_const",
        const="one-pass",
        default="one-pass",
        help="calibrate on the inputs that the dense model gives every layer (default)",
    )
    order.add_argument(
        "--sequential",
        dest="calibration_order",
        action="store_const",
        const="sequential",
        help="calibrate on the inputs that the layers compressed before give",
    )
    parser.add_argument(
        "--save-calibration", metavar="FILE", help="keep the second moments for later runs"
    )

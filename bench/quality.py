"""How well does the tiny model still answer at every width, beside the methods of others?

KL divergence from the dense model's answers, agreement, accuracy and the mean relative output
error on held-out inputs over stored bits: llava-fa, the baselines of ``methods.py`` and, with
``--peers-python``, real installations of peers. All stored bits are counted. Seeded methods are
measured under several seeds; intervals draw images anew, the range over seeds stands beside.
Calibration, held-out inputs and benchmark come from three different sets of images. Results are
kept in ``bench/cache``, so a run that was stopped continues. Writes the table and a chart, and
checks the targets of the project on the figures.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from bench import methods, support, tiny_model
from bench.methods import Method, Skipped
from bench.peers.rows import peer_rows
from bench.quality_chart import draw
from bench.quality_points import Laboratory, measure_all
from bench.quality_targets import targets
from bench.score_store import CACHE, Store
from bench.tiny_model import Judge

WIDTHS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
BASELINE_WIDTHS = (2, 3, 4)
QUICK_WIDTHS = (2.0, 4.0)
QUICK_BASELINES = (methods.ROUNDED, methods.NF4, methods.STRONG_GPTQ, methods.SVD_LLM)


def chosen_rows(
    quick: bool, only: str, peers: Sequence[Method | Skipped]
) -> list[Method | Skipped]:
    """Return the rows to measure: all, few in a smoke run, those whose name matches ``only``."""
    if quick:
        own = methods.own_baselines(int(bits) for bits in QUICK_WIDTHS)
        rows = [row for row in own if row.name in QUICK_BASELINES]
        rows += methods.ours(QUICK_WIDTHS)
    else:
        rows = [*methods.own_baselines(BASELINE_WIDTHS), *methods.ours(WIDTHS)]
    rows += peers
    return [row for row in rows if re.search(only, f"{row.name} {row.bits:g}")]


def main() -> None:
    """Measure and publish."""
    parser = support.parser(__doc__, "quality")
    tiny_model.add_options(parser, questions=2000)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the seeded methods")
    parser.add_argument("--only", default="", metavar="REGEX", help='rows by "NAME BITS"')
    parser.add_argument(
        "--peers-python",
        type=Path,
        metavar="PATH",
        help="interpreter of an environment with bench/requirements-peers.txt",
    )
    parser.add_argument("--no-cache", action="store_true", help="measure everything anew")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.questions, arguments.calibration, arguments.seeds = 40, 16, 1
    begin = time.perf_counter()
    store = Store(None if arguments.no_cache or arguments.quick else CACHE)
    judge = Judge(arguments.model, arguments.questions, store)
    laboratory = Laboratory(judge, arguments.calibration, store)
    peers = (
        []
        if arguments.quick
        else peer_rows(
            arguments.peers_python, arguments.model, arguments.calibration, arguments.only
        )
    )
    rows = chosen_rows(arguments.quick, arguments.only, peers)
    points, skipped = measure_all(laboratory, rows, arguments.seeds)
    if not points:
        parser.error(f"no row can be measured: --only {arguments.only!r}")
    checked = targets(judge, points)
    dense = {
        "accuracy %": 100 * judge.dense_accuracy.value,
        "accuracy interval": f"{100 * judge.dense_accuracy.low:.1f} to "
        f"{100 * judge.dense_accuracy.high:.1f}",
        "questions": len(judge.questions),
        "images": len(set(judge.images)),
        "weights compressed": judge.weight_count,
        "calibration questions": arguments.calibration,
    }
    not_measured = [{"method": row.name, "bits": row.bits, "reason": row.reason} for row in skipped]
    tables = {
        "Dense model": [dense],
        "Answers of the tiny model": [point.row(judge) for point in points],
        "Targets": checked,
        "Not measured": not_measured,
    }
    support.publish(
        "quality",
        arguments.json,
        {heading: lines for heading, lines in tables.items() if lines},
        {
            "dense": dense,
            "targets_met": all(row["met"] for row in checked),
            "seconds_taken": time.perf_counter() - begin,
        },
    )
    draw(arguments.json.with_suffix(".png"), points, judge.dense_accuracy.value)


if __name__ == "__main__":
    main()

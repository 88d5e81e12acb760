"""Charts of a plan: code bits over depth and module type, as text and as an image."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from .bit_plan import BitPlan, PlannedMatrix

_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<depth>\d+)\.(?P<kind>.+)$")
_CELL = 3

Grid = dict[str, dict[int, PlannedMatrix]]
"""Module type → depth → matrix."""


def stacks(plan: BitPlan) -> dict[str, Grid]:
    """Sort the matrices into stacks of layers: stack name → module type → depth → matrix.

    The first number in a name is the depth. A matrix outside of any stack makes one of its own.
    """
    found: dict[str, Grid] = {}
    for matrix in plan.matrices:
        parts = _LAYER.match(matrix.name)
        stack, kind, depth = parts.group("stack", "kind", "depth") if parts else (None, None, "0")
        grid = found.setdefault(stack or matrix.name, {})
        grid.setdefault(kind or "", {})[int(depth)] = matrix
    return found


def text_chart(plan: BitPlan) -> str:
    """Return the chart for a terminal: a row per module type, a column per layer of the stack."""
    lines = ["code bits over depth (. is kept dense)"]
    width = max(
        (len(kind) + 2 for grid in stacks(plan).values() for kind in grid),
        default=0,
    )
    for stack, grid in stacks(plan).items():
        if set(grid) == {""}:
            lines.append(f"{stack}  {_bits(grid[''][0])}")
            continue
        depths = _depths(grid)
        lines.append(stack)
        lines.append(" " * width + "".join(f"{depth:>{_CELL}}" for depth in depths))
        for kind, row in grid.items():
            cells = "".join(
                f"{_bits(row[depth]) if depth in row else '.':>{_CELL}}" for depth in depths
            )
            lines.append(f"  {kind}".ljust(width) + cells)
    return "\n".join(line.rstrip() for line in lines)


def save_chart(plan: BitPlan, path: str | os.PathLike[str]) -> None:
    """Draw the chart as an image; the kind of file follows from the suffix of ``path``.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "drawing a chart needs matplotlib: pip install matplotlib, or leave --chart out"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    grids = _drawn(stacks(plan))
    heights = [len(grid) for grid in grids.values()]
    figure, axes = pyplot.subplots(
        len(grids),
        1,
        figsize=(10, 1.2 * len(grids) + 0.3 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for panel, (title, grid) in zip(axes[:, 0], grids.items(), strict=True):
        depths = _depths(grid)
        values = [
            [row[depth].config.bits if depth in row else float("nan") for depth in depths]
            for row in grid.values()
        ]
        image = panel.imshow(values, aspect="auto", vmin=1, vmax=5, cmap="viridis")
        panel.set_title(title, fontsize=9)
        panel.set_xticks(range(len(depths)), [str(depth) for depth in depths], fontsize=7)
        panel.set_yticks(range(len(grid)), list(grid), fontsize=7)
    axes[-1, 0].set_xlabel("layer")
    figure.colorbar(image, ax=axes[:, 0].tolist(), label="code bits per weight")
    figure.suptitle(f"{plan.bits_per_weight:.3f} stored bits per weight on average")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _drawn(found: Mapping[str, Grid]) -> dict[str, Grid]:
    """Join the matrices outside of stacks into one panel."""
    grids = {stack: grid for stack, grid in found.items() if set(grid) != {""}}
    single = {stack: grid[""] for stack, grid in found.items() if set(grid) == {""}}
    return {**grids, **({"others": single} if single else {})}


def _depths(grid: Grid) -> list[int]:
    return list(range(max(depth for row in grid.values() for depth in row) + 1))


def _bits(matrix: PlannedMatrix) -> str:
    """Two characters, so that whole and half sizes align."""
    whole, half = divmod(matrix.config.code_bits, 2)
    return f"{whole}{'½' if half else ' '}"

"""The chart of the comparison: KL, accuracy and output error over stored bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import methods as m
from bench.quality_points import Point

STYLES = {
    m.NO_DATA: ("o-", "tab:blue"),
    m.CALIBRATED: ("s-", "tab:green"),
    m.TRELLIS_NO_DATA: ("v-", "tab:cyan"),
    m.FED_BACK: ("P-", "tab:olive"),
    m.TRELLIS: ("*-", "black"),
    m.ROUNDED: ("^--", "tab:red"),
    m.AWQ_SEARCHED: ("<--", "tab:pink"),
    m.GPTQ: (">--", "tab:brown"),
    m.STRONG_GPTQ: ("X--", "tab:purple"),
    m.SVD_LLM: ("p:", "tab:gray"),
    m.NF4: ("D", "tab:orange"),
}
LEFT_OUT = (m.NO_SCALES, m.TRELLIS_NO_SCALES, m.AWQ, m.FED_BACK_GPTQ, m.ASVD, m.LQER, m.LQ_LORA)
"""Lines that stand in the table alone."""

OTHER_MARKS = "hd1234+x"


def draw(path: Path, points: Sequence[Point], dense_accuracy: float) -> None:
    """Draw KL and output error (logarithmic) and accuracy over stored bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    names = [name for name in dict.fromkeys(p.method for p in points) if name not in LEFT_OUT]
    others = [name for name in names if name not in STYLES]
    styles = dict(STYLES)
    for index, name in enumerate(others):
        styles[name] = (OTHER_MARKS[index % len(OTHER_MARKS)], f"C{index % 10}")
    for name in [name for name in styles if name in names]:
        line = sorted((p for p in points if p.method == name), key=lambda p: p.stored)
        stored = [point.stored for point in line]
        marks, color = styles[name]
        ours = name.startswith(("ring", "trellis"))
        label = f"llava-fa {name}" if ours else name
        for place, values in zip(
            axes,
            (
                [point.kl for point in line],
                [100 * point.accuracy for point in line],
                [point.output_error for point in line],
            ),
            strict=True,
        ):
            place.plot(stored, values, marks, color=color, label=label, markersize=5)
    titles = (
        "KL divergence from the dense model (nats)",
        "accuracy (%)",
        "mean relative output error, held-out inputs",
    )
    for place, title in zip(axes, titles, strict=True):
        place.set_ylabel(title)
        place.set_xlabel("stored bits per weight, everything counted")
        place.grid(alpha=0.3, which="both")
    axes[0].set_yscale("log")
    axes[2].set_yscale("log")
    axes[1].axhline(100 * dense_accuracy, color="gray", linewidth=1, label="dense model")
    labels = axes[1].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)

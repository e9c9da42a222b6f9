"""Plots of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's palette: told apart by colour-blind readers, and by brightness in print.
BLUE, VERMILION = "#0072B2", "#D55E00"


def plot_accuracy(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw held-out accuracy over rounds and, where there is a budget, the largest ε spent below it.

    Args:
        rows: Rows of ``metrics.jsonl``; rounds that were not evaluated are left out of the accuracy line.
        path: PNG to write.
    """
    spends = [(row["server_round"], row["epsilon"]) for row in rows if row["epsilon"] is not None]
    figure = Figure(figsize=(7, 5 if spends else 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if spends else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1] if spends else [1])
    measured = [(row["server_round"], row["accuracy"]) for row in rows if row["accuracy"] is not None]
    top = axes[0][0]
    top.plot(*zip(*measured, strict=True), marker="o", color=BLUE)
    top.annotate(
        f"{measured[-1][1]:.1%}", measured[-1], textcoords="offset points", xytext=(0, 8), ha="center", color=BLUE
    )
    top.set_ylabel("held-out accuracy")
    top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    top.margins(y=0.15)
    if spends:
        bottom = axes[1][0]
        bottom.plot(*zip(*spends, strict=True), marker="s", color=VERMILION)
        bottom.set_ylabel("largest ε spent")
        bottom.set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1][0].set_xlabel("round")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

"""Plots of one run, and the colors and markers that all plots share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedsvd.config.task import ACCURACY, Metric, score_metric
from fedsvd.report.figures import literal_legend, log_failure, new_figure, save_png

# Okabe and Ito's palette: distinguishable by color-blind readers, and by brightness in grayscale print.
BLUE, VERMILION = "#0072B2", "#D55E00"
PALETTE = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
# Lines on white omit yellow and have one marker per color, so that they differ without color as well.
LINE_COLORS = tuple(color for color in PALETTE if color != "#F0E442")
MARKERS = "osD^v<>"


@log_failure
def plot_accuracy(rows: Sequence[Mapping[str, Any]], path: Path, config: Mapping[str, Any] | None = None) -> None:
    """Write `accuracy_figure` as PNG, with `reference_accuracies` of a configuration."""
    save_png(accuracy_figure(rows, reference_accuracies(rows, config or {}), score_metric(config or {})), path)


@log_failure
def plot_partitions(counts: Sequence[Mapping[str, int]], path: Path, unit: str = "training examples") -> None:
    """Write `partitions_figure` as PNG."""
    save_png(partitions_figure(counts, unit), path)


def counted_unit(task: str) -> str:
    """Return what is counted by class: the labels if an example can have several, otherwise the examples."""
    several = task in ("multi_label_classification", "token_classification")
    return "labels of training examples" if several else "training examples"


def accuracy_figure(
    rows: Sequence[Mapping[str, Any]], references: Mapping[str, float] | None = None, metric: Metric = ACCURACY
) -> Figure:
    """Plot held-out accuracy over rounds and, for private runs, the largest ε spent in a panel below.

    Args:
        rows: Rows of ``metrics.jsonl``; rounds that were not evaluated are omitted from the accuracy line.
        references: Accuracies to show as horizontal lines, by label; see `reference_accuracies`.
        metric: The metric that is plotted instead, for other tasks than classification.
    """
    epsilons = [(row["server_round"], row["epsilon"]) for row in rows if row["epsilon"] is not None]
    figure = new_figure(7, 5 if epsilons else 3.6)
    panels, ratios = (2, [2, 1]) if epsilons else (1, [1])
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=ratios)
    evaluated = [(row["server_round"], row[metric.key]) for row in rows if row.get(metric.key) is not None]
    top = axes[0][0]
    if evaluated:
        label = metric.format(evaluated[-1][1])
        top.plot(*zip(*evaluated, strict=True), marker="o", color=BLUE)
        top.annotate(label, evaluated[-1], textcoords="offset points", xytext=(0, 8), ha="center", color=BLUE)
    else:
        top.annotate("no held-out evaluation", (0.5, 0.5), xycoords="axes fraction", ha="center")
    _draw_references(top, references or {}, metric)
    top.set_ylabel(f"held-out {metric.label}")
    if metric.is_share:
        top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    top.margins(y=0.15)
    if epsilons:
        bottom = axes[1][0]
        bottom.plot(*zip(*epsilons, strict=True), marker="s", color=VERMILION)
        bottom.set_ylabel("largest ε spent")
        bottom.set_ylim(0, 1.12 * max(epsilon for _, epsilon in epsilons))
    for axis in axes[:, 0]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1][0].set_xlabel("round")
    return figure


def reference_accuracies(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracies that put a run's accuracy into perspective, by label.

    Args:
        rows: Rows of ``metrics.jsonl``. Round 0 of a run that starts from a zero-shot head has the zero-shot accuracy.
        config: Configuration values by dotted key; ``reference_accuracy`` is that of the model without privacy.
    """
    references = {}
    start = next((row.get(score_metric(config).key) for row in rows if row["server_round"] == 0), None)
    if config.get("train.head_init") == "zero_shot" and start is not None:
        references["zero-shot"] = float(start)
    if config.get("reference_accuracy") is not None:
        references["without privacy"] = float(config["reference_accuracy"])
    return references


def _draw_references(axes: Axes, references: Mapping[str, float], metric: Metric) -> None:
    for (label, accuracy), style in zip(references.items(), ("--", ":"), strict=False):
        axes.axhline(accuracy, color="0.35", linestyle=style, linewidth=1.2)
        axes.annotate(
            f"{label} {metric.format(accuracy)}", (1, accuracy), xycoords=("axes fraction", "data"),
            textcoords="offset points", xytext=(-2, 3), ha="right", color="0.35", fontsize=9,
        )  # fmt: skip


def partitions_figure(counts: Sequence[Mapping[str, int]], unit: str = "training examples") -> Figure:
    """Plot the number of training examples per client: one bar per client, stacked by class.

    Args:
        counts: For each client, the number of examples by class; all with the same classes in the same order.
        unit: What is counted, see `counted_unit`.
    """
    height = max(0.9 + 0.35 * min(len(counts), 40), 0.3 + 0.18 * min(len(counts[0]), 40))
    figure = new_figure(7, height)
    axes = figure.subplots()
    left = [0] * len(counts)
    bars = []
    for index, name in enumerate(counts[0]):
        sizes = [client[name] for client in counts]
        color = PALETTE[index % len(PALETTE)]
        # Colors repeat after eight classes; hatching distinguishes the repetitions.
        hatch = ("", "//", "..", "xx")[index // len(PALETTE) % 4]
        bars.append(axes.barh(range(len(counts)), sizes, left=left, color=color, hatch=hatch, edgecolor="white"))
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for client, total in enumerate(left):
        axes.annotate(f"{total:,}", (total, client), textcoords="offset points", xytext=(4, 0), va="center", fontsize=8)
    axes.set_xlabel(unit)
    axes.set_ylabel("client")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    literal_legend(figure, bars, list(counts[0]), loc="outside right upper", fontsize=8, frameon=False)
    return figure

"""Plot of the LoRA factors over rounds: spectrum, effective rank, subspace angle, noise and clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedsvd.report.figures import log_failure, new_figure, save_png
from fedsvd.report.plots import BLUE, PALETTE, VERMILION

Rows = Sequence[Mapping[str, Any]]


@log_failure
def plot_diagnostics(rows: Rows, path: Path) -> None:
    """Write `diagnostics_figure` as PNG; write nothing if no round had a server step."""
    figure = diagnostics_figure(rows)
    if figure is not None:
        save_png(figure, path)


def diagnostics_figure(rows: Rows) -> Figure | None:
    """Plot diagnostics over rounds.

    The panels show singular values, effective rank and principal angle (means over adapted layers), and the
    signal-to-noise ratio with the share of clipped examples.

    Args:
        rows: Rows of ``metrics.jsonl``; rounds without a server step are omitted.

    Returns:
        None if no round had a server step.
    """
    stepped = [row for row in rows if row["sites"]]
    if not stepped:
        return None
    figure = new_figure(9, 6.5)
    axes = figure.subplots(2, 2, sharex=True)
    rounds = [row["server_round"] for row in stepped]
    _plot_spectrum(axes[0][0], rounds, stepped)
    _line(axes[0][1], rounds, [_mean(row, "effective_rank") for row in stepped], "effective rank of BA", BLUE)
    _line(
        axes[1][0],
        rounds,
        [_mean(row, "principal_angle") for row in stepped],
        "angle of A to previous round, °",
        BLUE,
        least=1.0,
    )
    _plot_noise(axes[1][1], rounds, stepped)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("round")
    return figure


def _plot_spectrum(axes: Axes, rounds: Sequence[int], rows: Rows) -> None:
    count = min(len(site["singular_values"]) for site in rows[0]["sites"].values())
    for index in range(count):
        values = [_mean_of([site["singular_values"][index] for site in row["sites"].values()]) for row in rows]
        # From dark to light, so that the order is visible in grayscale print as well.
        axes.plot(rounds, values, color=PALETTE[0], alpha=1 - 0.8 * index / max(1, count - 1), linewidth=1.5)
    axes.set_ylabel(f"{count} largest singular values of BA")
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)


def _plot_noise(axes: Axes, rounds: Sequence[int], rows: Rows) -> None:
    ratios = [row["signal_to_noise"] for row in rows]
    if any(ratio is not None for ratio in ratios):
        _line(axes, rounds, ratios, "signal-to-noise ratio of the mean update", BLUE)
    shares = [row["clipped_share"] for row in rows]
    if any(share is not None for share in shares):
        right = axes.twinx()
        right.plot(rounds, shares, marker="s", markersize=4, color=VERMILION, linestyle="--")
        right.set_ylabel("share of examples clipped (dashed)", color=VERMILION)
        right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        right.set_ylim(0, 1.04)
        right.spines[["top"]].set_visible(False)


def _line(
    axes: Axes, rounds: Sequence[int], values: Sequence[float | None], label: str, color: str, least: float = 0.0
) -> None:
    """Plot values with a y axis from zero to at least ``least``, so that rounding errors do not fill the panel."""
    axes.plot(rounds, [float("nan") if v is None else v for v in values], marker="o", markersize=4, color=color)
    axes.set_ylabel(label)
    highest = max((value for value in values if value is not None), default=0.0)
    axes.set_ylim(0, 1.08 * max(highest, least) or 1.0)


def _mean(row: Mapping[str, Any], key: str) -> float:
    return _mean_of([site[key] for site in row["sites"].values()])


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)
